"""All children of a job but the RayJobs, in the order in which they are needed."""

from dataclasses import dataclass

from rljob_api.contract.request import Request

from rljob_operator.kube.objects import Obj
from rljob_operator.resources import config_maps, lease, network, rbac, retriever, storage
from rljob_operator.resources.context import Context


@dataclass(frozen=True)
class Wanted:
    """What the children depend on besides the spec."""

    attempt: int
    """Attempt that may hold the Lease; the first, before it has begun."""
    request: Request
    """What the driver is asked."""
    retriever: bool = True
    """Whether the retriever exists yet."""
    retriever_running: bool = True
    """Whether it has pods."""
    deployment: bool = True
    """Whether its Deployment exists: from when it first has pods."""


def children(context: Context, wanted: Wanted) -> list[Obj]:
    """The children. Raises UserError when the user's patch of the retriever's pods cannot be merged."""
    result = [
        rbac.service_account(context),
        rbac.role(context),
        rbac.role_binding(context),
        storage.claim(context),
        storage.retriever_claim(context),
        config_maps.config(context),
        config_maps.code(context),
        config_maps.progress(context),
        config_maps.control(context, wanted.request),
        lease.lease(context, wanted.attempt),
        *network.policies(context),
    ]
    if (spec := context.spec.retriever) and wanted.retriever:
        result.append(retriever.service(context, spec))
        if wanted.deployment:
            result.append(retriever.deployment(context, spec, running=wanted.retriever_running))
            result.append(retriever.autoscaler(context, spec))
            result.append(retriever.disruption_budget(context, spec))
    return [child for child in result if child is not None]
