"""ConfigMaps: the manifest for the trainer, the user's modules, and the two ends of the talk with the driver."""

import json

from rljob_api.contract import labels, names
from rljob_api.contract.job_document import MANIFEST_KEY, document
from rljob_api.contract.request import REQUEST_KEY, Request, request_to_json

from rljob_operator.kube.objects import CONFIG_MAP, Obj
from rljob_operator.resources.context import Context


def config(context: Context) -> Obj:
    """The RLJob as JSON, for images of this and of other versions (see `rljob_api.contract.job_document`). The user's
    annotations stay behind: they repeat the whole manifest."""
    metadata = {
        "name": context.name,
        "namespace": context.namespace,
        "uid": context.uid,
        "labels": dict(context.job.metadata.labels),
    }
    manifest = document(context.job, metadata)
    body = context.child(CONFIG_MAP, names.config(context.name))
    body["data"] = {MANIFEST_KEY: json.dumps(manifest, sort_keys=True, ensure_ascii=False)}
    return body


def code(context: Context) -> Obj | None:
    """The modules written in the manifest; None when there are none."""
    if not context.spec.code.files:
        return None
    body = context.child(CONFIG_MAP, names.code(context.name))
    body["data"] = dict(sorted(context.spec.code.files.items()))
    return body


def progress(context: Context) -> Obj:
    """The driver reports into it. Applied without data, so that what the driver wrote stays the driver's."""
    return context.child(CONFIG_MAP, names.progress(context.name), labels.PROGRESS_COMPONENT)


def control(context: Context, request: Request) -> Obj:
    """What the operator asks of the driver."""
    body = context.child(CONFIG_MAP, names.control(context.name))
    body["data"] = {REQUEST_KEY: request_to_json(request)}
    return body
