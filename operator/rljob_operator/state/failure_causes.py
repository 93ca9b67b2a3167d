"""Why an attempt failed, as its pods tell it: killed for memory, evicted, preempted, on a node that is gone."""

from collections.abc import Iterable
from dataclasses import dataclass

from rljob_api.contract import labels
from rljob_api.v1alpha1.status import AttemptReason

from rljob_operator.kube.objects import Obj, condition, meta, name_of

VAGUE: frozenset[AttemptReason] = frozenset(
    {"WorkerLost", "WorkerStuck", "CommunicationError", "DriverFailed", "PodLost", "RayJobFailed", "Suspended"}
)
"""Reasons that a pod may know the cause of."""
_DISRUPTIONS: dict[str, AttemptReason] = {
    "PreemptionByScheduler": "Preempted",
    "EvictionByEvictionAPI": "Evicted",
    "TerminationByKubelet": "Evicted",
    "DeletionByTaintManager": "NodeLost",
    "DeletionByPodGC": "NodeLost",
}
"""Reasons of the condition DisruptionTarget, which Kubernetes sets before it takes a pod away."""
_STATUS: dict[str, AttemptReason] = {
    "Evicted": "Evicted",
    "Preempting": "Preempted",
    "NodeLost": "NodeLost",
    "NodeShutdown": "NodeLost",
    "Terminated": "NodeLost",
}
"""`status.reason` of a pod; `Terminated` is the kubelet's word for a node that shuts down."""
_ORDER: tuple[AttemptReason, ...] = ("OutOfMemory", "Preempted", "Evicted", "NodeLost")


@dataclass(frozen=True)
class Cause:
    """What a pod says of an attempt's end."""

    reason: AttemptReason
    message: str


def of_pods(pods: Iterable[Obj]) -> Cause | None:
    """The cause that pods give, memory first: it is the one that a user can do something about."""
    found = [cause for pod in pods if (cause := _of(pod))]
    return min(found, key=lambda cause: _ORDER.index(cause.reason), default=None)


def _of(pod: Obj) -> Cause | None:
    status = pod.get("status") or {}
    who = f"{meta(pod, 'labels', labels.ROLE) or 'a'} pod {name_of(pod)}"
    for container in [*(status.get("initContainerStatuses") or []), *(status.get("containerStatuses") or [])]:
        for state in (container.get("state") or {}, container.get("lastState") or {}):
            if (state.get("terminated") or {}).get("reason") == "OOMKilled":
                return Cause("OutOfMemory", f"{who}: container {container['name']} was killed for memory (OOMKilled)")
    disruption = condition(pod, "DisruptionTarget")
    if disruption.get("status") == "True" and (reason := _DISRUPTIONS.get(disruption.get("reason", ""))):
        return Cause(reason, f"{who}: {disruption['reason']}: {disruption.get('message', '')}".rstrip(": "))
    if reason := _STATUS.get(status.get("reason", "")):
        return Cause(reason, f"{who}: {status['reason']}: {status.get('message', '')}".rstrip(": "))
    return None
