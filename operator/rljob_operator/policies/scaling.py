"""The rollout group while it trains: more pods at once, fewer only after the driver has emptied those that go.

KubeRay ignores a changed RayJob once its cluster exists, so the cluster's own group is patched, by its index. It would
take any pods away; `scaleStrategy.workersToDelete` names ours. The driver is asked by the control ConfigMap to drain
them, and is waited for (bounded): what they had under way is finished first.
"""

import copy
from dataclasses import replace
from typing import Any

from rljob_api.rules.arithmetic import rollout_pods

from rljob_operator.kube.objects import Obj, deleting, name_of, rfc3339
from rljob_operator.policies.decision import Decision, Patch, Scaling
from rljob_operator.state.job_view import JobView
from rljob_operator.state.pod_diagnosis import ready


def scale(view: JobView, decided: Decision) -> Decision:
    """The next step towards `rollout.replicas` pods."""
    attempt, wanted = decided.active, rollout_pods(decided.context.spec)
    cluster = view.observed.ray_cluster(attempt.number) if attempt else None
    found = _group(cluster)
    if attempt is None or cluster is None or found is None or deleting(cluster):
        return _with(decided, Scaling(wanted if attempt else 0))
    index, group = found
    there = int(group.get("replicas") or 0)
    if wanted == there:
        return _with(decided, Scaling(wanted))
    message = f"scaling the rollout group from {there} to {wanted}"
    if wanted > there:
        return _with(decided, Scaling(wanted, message=message), _patch(cluster, index, wanted))
    chosen, since = _choose(view, attempt.number, there - wanted)
    limit = view.settings.drain_timeout_seconds
    left = view.left(since, limit)
    if left and not _drained(view, attempt.number, chosen):
        message += f": waiting until {', '.join(chosen)} are drained"
        return _with(decided, Scaling(wanted, chosen, since, message)).look_again(left + 1.0)
    message += f": {', '.join(chosen)} go"
    if not left:
        message += f", not drained within {limit:.0f} s: their samples are generated again"
    return _with(decided, Scaling(wanted, chosen, since, message), _patch(cluster, index, wanted, chosen))


def _with(decided: Decision, scaling: Scaling, *patch: Patch) -> Decision:
    """With this scaling; what an earlier policy refuses stays refused."""
    return replace(decided, scaling=replace(scaling, refused=decided.scaling.refused), patch=patch)


def _choose(view: JobView, attempt: int, count: int) -> tuple[tuple[str, ...], str]:
    """Pods that go, and since when the driver knows. Those that were asked for stay chosen while they are there."""
    asked = view.asked
    mine = asked.get("attempt") == attempt
    pods = [pod for pod in view.observed.group("rollout", attempt) if not deleting(pod)]
    names = {name_of(pod) for pod in pods}
    before = asked.get("drain") if mine else None
    staying = [name for name in before if name in names] if isinstance(before, list) else []
    # What serves least goes first: not ready, without an engine, then the youngest.
    its = view.report_of(attempt)
    report = its.engines if its else None
    serving = set(report.serving) if report else set()
    pods.sort(key=name_of)
    pods.sort(key=lambda pod: str(pod["metadata"].get("creationTimestamp") or ""), reverse=True)
    pods.sort(key=lambda pod: (ready(pod), name_of(pod) in serving))
    chosen = tuple(dict.fromkeys((*staying, *map(name_of, pods))))[:count]
    same = set(chosen) == set(before or ())
    since = str(asked.get("drainSince") or "") if mine and same else ""
    return chosen, since or rfc3339(view.now)


def _drained(view: JobView, attempt: int, chosen: tuple[str, ...]) -> bool:
    """Whether nothing is lost when these pods go: the driver says so, has not begun, or knows no draining."""
    report = view.report_of(attempt)
    return report is None or report.engines is None or set(chosen) <= set(report.engines.drained)


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
