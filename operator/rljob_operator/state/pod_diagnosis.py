"""What pods say in their status: why they do not start, and why an attempt failed that ran in them."""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from rljob_api.contract import labels
from rljob_api.contract.attempt_reasons import ATTEMPT_REASONS
from rljob_api.contract.reasons import Reason
from rljob_api.v1alpha1.status import AttemptReason

from rljob_operator.kube.objects import Obj, condition, deleting, meta, name_of, parse_time

_WAITING = {
    "ImagePullBackOff": Reason.IMAGE_PULL,
    "ErrImagePull": Reason.IMAGE_PULL,
    "ErrImageNeverPull": Reason.IMAGE_PULL,
    "InvalidImageName": Reason.IMAGE_PULL,
    "CreateContainerConfigError": Reason.CONFIG_ERROR,
    "CreateContainerError": Reason.CONFIG_ERROR,
    "RunContainerError": Reason.CONFIG_ERROR,
    "CrashLoopBackOff": Reason.CRASHING,
}
_PACKAGE = re.compile(r"(?:ModuleNotFoundError|ImportError): (?:No module named '([^']+)'|[^\n]+)")
_PORT = re.compile(r"address already in use|cannot be listened on", re.IGNORECASE)
_ORDER = (
    Reason.WRONG_ENVIRONMENT, Reason.PORT_TAKEN, Reason.CONFIG_ERROR, Reason.CRASHING, Reason.IMAGE_PULL,
    Reason.UNSCHEDULABLE,
)  # fmt: skip
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
_CAUSE_ORDER: tuple[AttemptReason, ...] = ("OutOfMemory", "Preempted", "Evicted", "NodeLost")
_LONGEST = 1000
"""Characters kept of a message."""


@dataclass(frozen=True)
class PodProblem:
    """What keeps pods from starting."""

    reason: Reason
    message: str
    exit_code: int | None = None
    """Exit code of the container that keeps ending."""


@dataclass(frozen=True)
class Cause:
    """What a pod says of an attempt's end."""

    reason: AttemptReason
    message: str


def ready(pod: Obj) -> bool:
    """Whether a pod is ready (and not on its way out)."""
    return condition(pod, "Ready").get("status") == "True" and not deleting(pod)


def ended(pod: Obj) -> bool:
    """Whether all of a pod's containers have ended for good."""
    return (pod.get("status") or {}).get("phase") in ("Succeeded", "Failed")


def has_started(pod: Obj) -> bool:
    """Whether any container of the pod has started."""
    return any("running" in state or "terminated" in state for _, state in _states(pod))


def silent_pod(pods: Iterable[Obj]) -> str | None:
    """A pod that had answered and answers its probes no more, in words; the kubelet restarts it when it stays so."""
    for pod in pods:
        turned = condition(pod, "Ready").get("lastTransitionTime")
        for status in (pod.get("status") or {}).get("containerStatuses") or []:
            begun = ((status.get("state") or {}).get("running") or {}).get("startedAt")
            # `started` is the kubelet's word that the startup probe has passed. Ready comes a moment later: only what
            # has turned unready since this container began was ever ready.
            if not (begun and turned and status.get("started")) or status.get("ready") or deleting(pod):
                continue
            if parse_time(turned) > parse_time(begun):
                again = status.get("restartCount", 0)
                return f"pod {name_of(pod)} runs and does not answer; its liveness probe restarts it ({again} so far)"
    return None


def worst_problem(pods: Iterable[Obj]) -> PodProblem | None:
    """The gravest problem of the pods; None when they are merely not ready yet."""
    problems = (problem for pod in pods for problem in _problems(pod))
    return min(problems, key=lambda problem: _ORDER.index(problem.reason), default=None)


def last_words(pods: Iterable[Obj]) -> str | None:
    """What the container said that failed last, with its pod and exit code; None when none did."""
    failed = [
        (str(end.get("finishedAt", "")), name_of(pod), status["name"], end)
        for pod in pods
        for status in _statuses(pod)
        if (end := (status.get("state") or {}).get("terminated")) and end.get("exitCode")
    ]
    if not failed:
        return None
    _, pod, container, end = max(failed, key=lambda item: item[:3])
    return f"pod {pod}, container {container} (exit {end['exitCode']}): {_cut(str(end.get('message') or ''))}"


def cause_of_failure(pods: Iterable[Obj]) -> Cause | None:
    """The cause that pods give, memory first: it is the one that a user can do something about."""
    found = [cause for pod in pods if (cause := _cause(pod))]
    return min(found, key=lambda cause: _CAUSE_ORDER.index(cause.reason), default=None)


def _problems(pod: Obj) -> Iterator[PodProblem]:
    if deleting(pod):
        return
    scheduled = condition(pod, "PodScheduled")
    if scheduled.get("status") == "False" and scheduled.get("reason") == "Unschedulable":
        yield PodProblem(Reason.UNSCHEDULABLE, f"pod {name_of(pod)}: {_cut(scheduled.get('message', ''))}")
    for status in _statuses(pod):
        waiting = (status.get("state") or {}).get("waiting") or {}
        if reason := _WAITING.get(waiting.get("reason", "")):
            last = (status.get("lastState") or {}).get("terminated") or {}
            said = last.get("message") or waiting.get("message") or waiting["reason"]
            code = f" (exit {last['exitCode']})" if "exitCode" in last else ""
            where = f"pod {name_of(pod)}, container {status['name']}{code}"
            yield PodProblem(*_named(reason, where, said, status.get("image", "")), last.get("exitCode"))


def _named(reason: Reason, where: str, said: str, image: str) -> tuple[Reason, str]:
    """A container that keeps ending, by what it says last: a package that its image lacks, a port that is taken."""
    if reason is Reason.CRASHING and (found := _PACKAGE.search(said)):
        what = f"lacks the Python package {found[1]!r}" if found[1] else f"does not fit: {found[0]}"
        return Reason.WRONG_ENVIRONMENT, f"{where}: the image {image} {what}; name another in spec.images"
    if reason is Reason.CRASHING and _PORT.search(said):
        return Reason.PORT_TAKEN, f"{where}: {_cut(said)}"
    return reason, f"{where}: {_cut(said)}"


def _statuses(pod: Obj) -> list[Obj]:
    status = pod.get("status") or {}
    return [*(status.get("initContainerStatuses") or []), *(status.get("containerStatuses") or [])]


def _states(pod: Obj) -> Iterator[tuple[str, Obj]]:
    for status in _statuses(pod):
        for state in (status.get("state") or {}, status.get("lastState") or {}):
            yield status["name"], state


def _cut(text: str) -> str:
    # The end of a log says more than its beginning.
    text = text.strip()
    return text if len(text) <= _LONGEST else f"… {text[-_LONGEST:]}"


def _cause(pod: Obj) -> Cause | None:
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
