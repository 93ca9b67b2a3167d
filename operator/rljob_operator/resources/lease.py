"""The Lease that fences attempts: its annotation says which attempt may hold it, its spec is the driver's."""

from rljob_api.contract import labels, names

from rljob_operator.kube.objects import LEASE, Obj
from rljob_operator.resources.context import Context


def lease(context: Context, attempt: int) -> Obj:
    """The Lease, for the attempt to be held by."""
    body = context.child(LEASE, names.driver(context.name))
    body["metadata"]["annotations"] = {labels.ATTEMPT: str(attempt)}
    return body
