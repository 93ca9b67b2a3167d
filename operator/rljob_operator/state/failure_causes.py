"""Why an attempt failed, as its pods tell it: killed for memory, evicted, preempted, on a node that is gone.

What follows from a reason is a rule: the user's own (`lifecycle.failureRules`), else the default.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from rljob_api.contract import labels
from rljob_api.contract.attempt_reasons import ATTEMPT_REASONS
from rljob_api.v1alpha1.lifecycle import LifecycleSpec
from rljob_api.v1alpha1.status import AttemptReason

from rljob_operator.kube.objects import Obj, condition, meta, name_of

Action = Literal["Retry", "RetryUncounted", "Fail"]
VAGUE = frozenset(reason for reason, meaning in ATTEMPT_REASONS.items() if meaning.pod_may_know_more)
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


def action(lifecycle: LifecycleSpec, reason: AttemptReason) -> Action:
    """What follows from an attempt's end for this reason."""
    follows = ATTEMPT_REASONS[reason].follows
    if follows == "Fail":
        return "Fail"
    chosen = next((rule.action for rule in lifecycle.failure_rules if reason in rule.reasons), None)
    return chosen or ("RetryUncounted" if follows == "RetryUncounted" else "Retry")


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
