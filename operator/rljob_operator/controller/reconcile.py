"""One reconcile: observe, plan, write. Every write may be the last one before a crash."""

import logging
from collections.abc import Mapping
from dataclasses import replace
from datetime import datetime
from typing import Any

from rljob_api.contract import labels

from rljob_operator import log
from rljob_operator.controller.plan import Plan, plan
from rljob_operator.controller.status_throttle import StatusThrottle
from rljob_operator.controller.writes import Writes
from rljob_operator.kube.client import ApiError, Kube, event
from rljob_operator.kube.objects import RLJOB, WORKLOAD, Obj, rfc3339
from rljob_operator.settings import Settings
from rljob_operator.state.job_view import ACTIVE
from rljob_operator.state.observe import Observed, observe
from rljob_operator.state.refusals import Refusal, Refusals

logger = logging.getLogger(__name__)
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
            await _add_finalizer(kube, observed.job)
        await writes.children(observed, wanted)
        if refusals.known(key) == refused:
            break
    if throttle is not None:
        wanted = _throttled(observed, wanted, throttle)
    if wanted.status is not None:
        await _write_status(kube, observed.job, wanted.status)
    if await writes.scales(wanted):
        wanted = replace(wanted, requeue=0.0)
    await _finish(kube, observed, wanted, now)
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


async def _add_finalizer(kube: Kube, job: Obj) -> None:
    answer = await _set_finalizers(kube, job, [*_finalizers(job), labels.FINALIZER])
    job["metadata"] |= {"resourceVersion": answer["metadata"]["resourceVersion"], "finalizers": _finalizers(answer)}


async def _finish(kube: Kube, observed: Observed, wanted: Plan, now: datetime) -> None:
    """What comes after the status: Events, and the end of a job that is deleted."""
    job = observed.job
    for happening in wanted.events:
        name = happening.name(observed.name, job["metadata"]["uid"], rfc3339(now))
        logger.info("%s/%s: %s: %s", job["metadata"]["namespace"], observed.name, happening.reason, happening.message)
        body = event(job, name, happening.kind, str(happening.reason), happening.message, rfc3339(now))
        try:
            await kube.create(body)
        except ApiError as error:
            # An Event is a courtesy: the status says the same. 409: written before a crash.
            if error.status != 409:
                logger.warning("Event %s of %s was not written: %s", happening.reason, observed.name, error)
    if wanted.finalizer == "remove":
        await _set_finalizers(kube, job, [f for f in _finalizers(job) if f != labels.FINALIZER])


def _finalizers(job: Obj) -> list[str]:
    return list(job["metadata"].get("finalizers") or [])


async def _set_finalizers(kube: Kube, job: Obj, finalizers: list[str]) -> Obj:
    metadata = job["metadata"]
    # The version makes the write fail when anything has changed since: lists cannot be merged.
    body = {"metadata": {"finalizers": finalizers, "resourceVersion": metadata["resourceVersion"]}}
    return await kube.patch(RLJOB, metadata["namespace"], metadata["name"], body)


async def _write_status(kube: Kube, job: Obj, status: Mapping[str, Any]) -> None:
    metadata = job["metadata"]
    body = {
        "metadata": {"resourceVersion": metadata["resourceVersion"]},
        "status": merge_patch(job.get("status") or {}, status),
    }
    await kube.patch(RLJOB, metadata["namespace"], metadata["name"], body, subresource="status")


def merge_patch(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, Any]:
    """The merge patch (RFC 7386) from one map to another."""
    patch: dict[str, Any] = {key: None for key in old if key not in new}
    for key, value in new.items():
        before = old.get(key)
        if isinstance(before, Mapping) and isinstance(value, Mapping):
            if inner := merge_patch(before, value):
                patch[key] = inner
        elif before != value:
            patch[key] = value
    return patch
