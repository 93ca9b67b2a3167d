"""The claims: the one that holds the job's directory, and the retriever's own."""

from typing import Any

from rljob_api.contract import names
from rljob_api.v1alpha1.checkpoint import ClaimSpec

from rljob_operator.kube.objects import CLAIM, Obj, quantity
from rljob_operator.resources.context import Context


def claim_name(context: Context) -> str:
    """The claim that the pods mount."""
    return context.spec.storage.claim_name or names.claim(context.name)


def retriever_claim_name(context: Context) -> str | None:
    """The claim of the retriever's own; None when it has none."""
    storage = context.spec.retriever.storage if context.spec.retriever else None
    return (storage.claim_name or names.retriever_claim(context.name)) if storage else None


def retriever_claim(context: Context) -> Obj | None:
    """That claim, to create; None when there is none, or the job names one."""
    storage = context.spec.retriever.storage if context.spec.retriever else None
    if storage is None or storage.claim_name:
        return None
    return _claim(context, names.retriever_claim(context.name), storage)


def claim(context: Context) -> Obj | None:
    """The claim to create; None when the job names one of its own."""
    storage = context.spec.storage
    if storage.claim_name:
        return None
    return _claim(context, names.claim(context.name), storage)


def _claim(context: Context, name: str, storage: ClaimSpec) -> Obj:
    spec: dict[str, Any] = {
        "accessModes": list(storage.access_modes),
        "resources": {"requests": {"storage": storage.size}},
    }
    if storage.storage_class_name:
        spec["storageClassName"] = storage.storage_class_name
    body = context.child(CLAIM, name)
    body["spec"] = spec
    return body


def no_smaller(claim: Obj, live: Obj) -> Obj:
    """The claim as it is to be applied to the live one. Its size is a least size: what somebody has expanded stays as
    it is, and nothing is asked for that is there already."""
    spec, kept = claim["spec"], str(live["spec"]["resources"]["requests"]["storage"])
    there = str(((live.get("status") or {}).get("capacity") or {}).get("storage", kept))
    wanted, *found = map(quantity, (str(spec["resources"]["requests"]["storage"]), kept, there))
    if wanted is not None and all(size is not None and size < wanted for size in found):
        return claim
    return claim | {"spec": spec | {"resources": {"requests": {"storage": kept}}}}
