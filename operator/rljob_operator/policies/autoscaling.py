"""How many engines a job should have, by how long its trainer waits for samples.

Of a step's time the trainer waits a share w = G / (G + T), G being the wait and T all else. G falls as engines are
added: with r engines of r₀, G·r₀/r. So w becomes the target t with r = r₀ · [w / (1 − w)] / [t / (1 − t)].
"""

import math
from datetime import datetime, timedelta

from rljob_api.rules.arithmetic import rollout_pods
from rljob_api.v1alpha1.rollout import Autoscaling
from rljob_api.v1alpha1.status import AutoscalingStatus

from rljob_operator.kube.objects import parse_time, rfc3339
from rljob_operator.policies.decision import Decision
from rljob_operator.state.job_view import JobView

TOLERANCE = 0.2
"""The number stays while it is within this share of what would meet the target."""


def follow(view: JobView, decided: Decision) -> Decision:
    """Follow `rollout.autoscaling`: the number of engines that it has decided takes the place of `rollout.replicas`."""
    status, spec = decided.status, view.context.spec
    policy = spec.rollout.autoscaling
    if policy is None or not rollout_pods(spec):
        return decided.with_status(autoscaling=None) if status.autoscaling else decided
    report = view.report_of(status.attempt) if decided.active else None
    report = report if report and report.stage == "RL" else None
    limit = spec.placement.max_staleness
    stale = report.staleness_max if report else None
    ahead = limit is not None and limit > 0 and stale is not None and stale >= limit
    wait = report.trainer_wait if report else None
    new = decide(policy, status.autoscaling, spec.rollout.replicas, wait, view.now, ahead=ahead)
    return decided.with_status(autoscaling=new).with_engines(new.replicas)


def recommend(spec: Autoscaling, current: int, wait: float | None, *, ahead: bool = False) -> int:
    """Engines that would bring the trainer's wait to the target: at most doubled or halved at once, within the bounds.

    `wait`: share of its time that the trainer waits; None: not known. `ahead`: samples are as stale as is allowed, so
    that engines wait for the trainer and more of them would change nothing.
    """
    wanted = current
    if wait is not None:
        odds = min(max(wait, 0.001), 0.999) / (1.0 - min(max(wait, 0.001), 0.999))
        ratio = odds / (spec.target_trainer_wait / (1.0 - spec.target_trainer_wait))
        if abs(ratio - 1.0) > TOLERANCE:
            wanted = math.ceil(current * min(2.0, max(0.5, ratio)) - 1e-9)
    if ahead:
        wanted = min(wanted, current)
    return min(spec.max_replicas, max(spec.min_replicas, wanted))


def decide(
    spec: Autoscaling, state: AutoscalingStatus | None, start: int, wait: float | None, now: datetime, *, ahead: bool
) -> AutoscalingStatus:
    """The new state. A change is made once it has been recommended for the whole window of its direction; from the
    recommendations of that window the one nearest to the current number counts."""
    current = state.replicas if state else min(spec.max_replicas, max(spec.min_replicas, start))
    wanted = recommend(spec, current, wait, ahead=ahead)
    if wanted == current:
        return AutoscalingStatus(replicas=current)
    up = wanted > current
    earlier = state.recommended if state and state.recommended is not None else None
    if state is None or earlier is None or (earlier > current) != up:
        return AutoscalingStatus(replicas=current, recommended=wanted, since=rfc3339(now))
    nearest = min(earlier, wanted) if up else max(earlier, wanted)
    window = spec.scale_up_seconds if up else spec.scale_down_seconds
    if state.since is None or now - parse_time(state.since) < timedelta(seconds=window):
        return AutoscalingStatus(replicas=current, recommended=nearest, since=state.since or rfc3339(now))
    return AutoscalingStatus(replicas=nearest)
