"""The rollout group while it trains: more pods at once, fewer only after the driver has emptied those that go.

KubeRay ignores a changed RayJob once its cluster exists, so the cluster's own group is patched, by its index. It would
take any pods away; `scaleStrategy.workersToDelete` names ours. The driver is asked by the control ConfigMap to drain
them, and is waited for (bounded): what they had under way is finished first.
"""

import copy
from dataclasses import dataclass, replace
from typing import Any

from rljob_api.manifest.arithmetic import rollout_pods

from rljob_operator.kube.objects import Obj, deleting, name_of, rfc3339
from rljob_operator.policies.autoscaling import decide
from rljob_operator.state.job_view import View
from rljob_operator.state.pod_diagnosis import ready

Patch = tuple[Obj, list[dict[str, Any]]]
"""An object, and the JSON patch of it."""


@dataclass(frozen=True)
class Scaling:
    """What the rollout group needs now."""

    engines: int = 0
    """Engines that the driver is to have; 0: it is asked for nothing."""
    drain: tuple[str, ...] = ()
    """Pods that the driver is to empty."""
    since: str | None = None
    """When it was first asked to empty these."""
    patch: tuple[Patch, ...] = ()
    message: str = ""
    """What is under way; empty when nothing is."""
    refused: str = ""
    """Why it is not done; empty when it is."""
    requeue: tuple[float, ...] = ()


def scale(view: View) -> Scaling:
    """The next step towards `rollout.replicas` pods."""
    attempt = view.active
    cluster = view.observed.ray_cluster(attempt.number) if attempt else None
    found = _group(cluster)
    if attempt is None or cluster is None or found is None or deleting(cluster):
        return Scaling(engines=rollout_pods(view.context.spec) if attempt else 0)
    index, group = found
    wanted, there = rollout_pods(view.context.spec), int(group.get("replicas") or 0)
    if wanted >= there:
        patch = (_patch(cluster, index, wanted),) if wanted > there else ()
        message = f"scaling the rollout group from {there} to {wanted}" if patch else ""
        return Scaling(engines=wanted, patch=patch, message=message)
    chosen, since = _choose(view, attempt.number, there - wanted)
    limit = view.settings.drain_timeout_seconds
    left = view.left(since, limit)
    if left and not _drained(view, chosen):
        message = f"scaling the rollout group from {there} to {wanted}: waiting until {', '.join(chosen)} are drained"
        return Scaling(wanted, chosen, since, message=message, requeue=(left + 1.0,))
    message = f"scaling the rollout group from {there} to {wanted}: {', '.join(chosen)} go"
    if not left:
        message += f", not drained within {limit:.0f} s: their samples are generated again"
    return Scaling(wanted, chosen, since, (_patch(cluster, index, wanted, chosen),), message)


def autoscale(view: View) -> None:
    """Follow `rollout.autoscaling`: the number of engines that it has decided takes the place of `rollout.replicas`."""
    status, spec = view.status, view.context.spec
    policy = spec.rollout.autoscaling
    if policy is None or not rollout_pods(spec):
        status.autoscaling = None
        return
    report = view.report if view.active and view.report and view.report.stage == "RL" else None
    limit = spec.placement.max_staleness
    stale = report.staleness_max if report else None
    ahead = limit is not None and limit > 0 and stale is not None and stale >= limit
    wait = report.trainer_wait if report else None
    status.autoscaling = decide(policy, status.autoscaling, spec.rollout.replicas, wait, view.now, ahead=ahead)
    job = view.context.job.model_copy(deep=True)
    job.spec.rollout.replicas = status.autoscaling.replicas
    view.context = replace(view.context, job=job)


def _choose(view: View, attempt: int, count: int) -> tuple[tuple[str, ...], str]:
    """Pods that go, and since when the driver knows. Those that were asked for stay chosen while they are there."""
    asked = view.observed.request()
    mine = asked.get("attempt") == attempt
    pods = [pod for pod in view.observed.group("rollout", attempt) if not deleting(pod)]
    names = {name_of(pod) for pod in pods}
    before = asked.get("drain") if mine else None
    kept = [name for name in before if name in names] if isinstance(before, list) else []
    # What serves least goes first: not ready, without an engine, then the youngest.
    report = view.report.engines if view.report else None
    serving = set(report.serving) if report else set()
    pods.sort(key=name_of)
    pods.sort(key=lambda pod: str(pod["metadata"].get("creationTimestamp") or ""), reverse=True)
    pods.sort(key=lambda pod: (ready(pod), name_of(pod) in serving))
    chosen = tuple(dict.fromkeys((*kept, *map(name_of, pods))))[:count]
    same = set(chosen) == set(before or ())
    since = str(asked.get("drainSince") or "") if mine and same else ""
    return chosen, since or rfc3339(view.now)


def _drained(view: View, chosen: tuple[str, ...]) -> bool:
    """Whether nothing is lost when these pods go: the driver says so, has not begun, or knows no draining."""
    if view.report is None or view.report.engines is None:
        return True
    return set(chosen) <= set(view.report.engines.drained)


def _group(cluster: Obj | None) -> tuple[int, Obj] | None:
    groups = ((cluster or {}).get("spec") or {}).get("workerGroupSpecs") or []
    return next(((i, group) for i, group in enumerate(groups) if group.get("groupName") == "rollout"), None)


def _patch(cluster: Obj, index: int, replicas: int, delete: tuple[str, ...] = ()) -> Patch:
    path = f"/spec/workerGroupSpecs/{index}"
    operations: list[dict[str, Any]] = [
        {"op": "test", "path": f"{path}/groupName", "value": "rollout"},
        {"op": "add", "path": f"{path}/replicas", "value": replicas},
    ]
    if delete:
        operations.append({"op": "add", "path": f"{path}/scaleStrategy", "value": {"workersToDelete": list(delete)}})
    return copy.deepcopy(cluster), operations
