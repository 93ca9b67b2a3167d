"""The claim that holds the job's directory."""

from typing import Any

from rljob_operator import names
from rljob_operator.objects import CLAIM, Obj
from rljob_operator.render.context import Context


def claim_name(context: Context) -> str:
    """The claim that the pods mount."""
    return context.spec.storage.claim_name or names.claim(context.name)


def claim(context: Context) -> Obj | None:
    """The claim to create; None when the job names one of its own."""
    storage = context.spec.storage
    if storage.claim_name:
        return None
    spec: dict[str, Any] = {
        "accessModes": list(storage.access_modes),
        "resources": {"requests": {"storage": storage.size}},
    }
    if storage.storage_class_name:
        spec["storageClassName"] = storage.storage_class_name
    body = context.child(CLAIM, names.claim(context.name))
    body["spec"] = spec
    return body
