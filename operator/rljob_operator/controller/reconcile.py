"""One reconcile: observe, plan, write. Every write may be the last one before a crash."""

from collections.abc import Mapping
from dataclasses import replace
from datetime import datetime

from rljob_operator import log
from rljob_operator.controller.plan import Plan, plan
from rljob_operator.controller.writes import StatusThrottle, Writes, add_finalizer, finish, write_status
from rljob_operator.kube.client import Kube
from rljob_operator.kube.objects import WORKLOAD
from rljob_operator.settings import Settings
from rljob_operator.state.job_view import ACTIVE
from rljob_operator.state.observe import Observed, observe
from rljob_operator.state.refusals import Refusal, Refusals

_ROUNDS = 4
"""Plans of one reconcile at most: one, and another whenever what is refused has changed."""


async def reconcile(
    kube: Kube,
    namespace: str,
    name: str,
    settings: Settings,
    now: datetime | None = None,
    live: Kube | None = None,
    throttle: StatusThrottle[tuple[str, str]] | None = None,
    refusals: Refusals | None = None,
) -> tuple[float | None, Observed | None]:
    """Bring one job closer to what its spec says. Seconds until the next look (None: when something happens), and
    what was observed (None: there is no such job). `live` reads from the apiserver itself where `kube` may be a little
    behind; `throttle` lets a status wait that only counts pods; `refusals` remembers what not to try again at once.
    Raises ApiError."""
    key = (namespace, name)
    log.about(f"{namespace}/{name}")
    observed = await observe(kube, namespace, name)
    if observed is None:
        return None, None
    now = now or kube.clock()
    refusals = Refusals() if refusals is None else refusals
    writes = Writes(kube, key, refusals)
    for _ in range(_ROUNDS):
        refused = refusals.known(key)
        observed, wanted = await _planned(observed, now, settings, live, refused)
        if observed is None:
            return None, None
        _log_about(observed, wanted)
        if wanted.finalizer == "add":
            await add_finalizer(kube, observed.job)
        await writes.children(observed, wanted)
        if refusals.known(key) == refused:
            break
    if throttle is not None:
        wanted = _throttled(observed, wanted, throttle)
    if wanted.status is not None:
        await write_status(kube, observed.job, wanted.status)
    if await writes.scales(wanted):
        wanted = replace(wanted, requeue=0.0)
    await finish(kube, observed, wanted, now)
    waits = [seconds for seconds in (wanted.requeue, refusals.left(key)) if seconds is not None]
    return min(waits, default=None), observed


async def _planned(
    observed: Observed, now: datetime, settings: Settings, live: Kube | None, refused: tuple[Refusal, ...]
) -> tuple[Observed | None, Plan]:
    """The plan, and what it rests on: observed anew where that must not be behind (None: there is no such job)."""
    _log_about(observed)
    wanted = plan(observed, now, settings, refused)
    if live is None or not _rests_on_absence(observed, wanted):
        return observed, wanted
    anew = await _observe_live(live, observed, observed.job["metadata"]["namespace"], observed.name)
    return anew, wanted if anew is None else plan(anew, now, settings, refused)


def _log_about(observed: Observed, wanted: Plan | None = None) -> None:
    """Log lines from here on are of the attempt that there is, or that the plan begins."""
    status = (wanted and wanted.status) or observed.job.get("status")
    attempt = status.get("attempt") if isinstance(status, Mapping) else None
    log.about(f"{observed.job['metadata']['namespace']}/{observed.name}", attempt or None)


def _rests_on_absence(observed: Observed, wanted: Plan) -> bool:
    """Whether the plan is right only when something is not there: nothing left of an earlier attempt for another to
    begin or the job to go, no word of the driver's for an attempt to be judged without it. What a watch has not told
    of yet must not be taken for absent here. (A first attempt may begin: the caches were filled after the job before of
    the same name, if any, had ended.)"""
    if wanted.status is None:  # no attempt begins or ends; the old status may be such that it cannot be read
        return wanted.finalizer == "remove"
    before = (observed.job.get("status") or {}).get("attempt") or 0
    after = wanted.status.get("attempt") or 0
    return after > max(before, 1) or _ends_unreported(observed, wanted)


async def _observe_live(live: Kube, cached: Observed, namespace: str, name: str) -> Observed | None:
    """The job and all that is its, from the apiserver itself: but for Workloads, which it does not know by the job's
    label. They only explain."""
    found = await observe(live, namespace, name)
    if found is None:
        return None
    workloads = {key: obj for key, obj in cached.children.items() if key[0] == WORKLOAD.kind}
    return replace(found, children={**found.children, **workloads}, kueue=cached.kueue)


def _ends_unreported(observed: Observed, wanted: Plan) -> bool:
    """Whether the plan ends an attempt of which the driver has not said that it has ended."""
    before, after = observed.job.get("status") or {}, wanted.status or {}
    ends = {its["number"] for its in before.get("attempts") or () if its["state"] in ACTIVE} & {
        its["number"] for its in after.get("attempts") or () if its["state"] not in ACTIVE
    }
    report = observed.progress() if ends else None
    said = report is not None and report.attempt in ends and report.state != "Running"
    return bool(ends) and not said


def _throttled(observed: Observed, wanted: Plan, throttle: StatusThrottle[tuple[str, str]]) -> Plan:
    """The plan without its status, while that may wait."""
    key = (observed.job["metadata"]["namespace"], observed.name)
    if wanted.status is None:
        throttle.forget(key)
        return wanted
    left = throttle.left(key, observed.job.get("status") or {}, wanted.status)
    if not left:
        return wanted
    return replace(wanted, status=None, requeue=left if wanted.requeue is None else min(left, wanted.requeue))
