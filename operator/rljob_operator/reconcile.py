"""One reconcile: observe, plan, write. Every write may be the last one before a crash."""

import contextlib
import logging
from collections.abc import Iterator, Mapping
from dataclasses import replace
from datetime import datetime
from typing import Any

from rljob_operator import labels, log
from rljob_operator.kube import ApiError, Kube, event
from rljob_operator.objects import RAY_CLUSTER, RLJOB, WORKLOAD, Obj, controlled_by, kind_of, name_of, rfc3339
from rljob_operator.observe import Observed, observe
from rljob_operator.plan import Plan, conflicting, invalid, plan
from rljob_operator.settings import Settings
from rljob_operator.settling import Settling
from rljob_operator.view import ACTIVE

logger = logging.getLogger(__name__)


class NameConflictError(Exception):
    """A child's name is taken by something that is not the job's."""


class RefusedError(Exception):
    """The apiserver finds a child invalid: what the spec says of it passed our checks, and trying again cannot help."""


async def reconcile(
    kube: Kube,
    namespace: str,
    name: str,
    settings: Settings,
    now: datetime | None = None,
    live: Kube | None = None,
    settling: Settling[tuple[str, str]] | None = None,
) -> tuple[float | None, Observed | None]:
    """Bring one job closer to what its spec says. Seconds until the next look (None: when something happens), and
    what was observed (None: there is no such job). `live` reads from the apiserver itself where `kube` may be a little
    behind; `settling` lets a status wait that only counts pods. Raises ApiError."""
    log.about(f"{namespace}/{name}")
    observed = await observe(kube, namespace, name)
    if observed is None:
        return None, None
    now = now or kube.clock()
    _log_about(observed)
    wanted = plan(observed, now, settings)
    if live is not None and _rests_on_absence(observed, wanted):
        observed = await _observe_live(live, observed, namespace, name)
        if observed is None:
            return None, None
        wanted = plan(observed, now, settings)
    _log_about(observed, wanted)
    if settling is not None:
        wanted = _settled(observed, wanted, settling)
    try:
        await _write(kube, observed, wanted, now)
    except NameConflictError as conflict:
        wanted = conflicting(observed, now, str(conflict))
        await _write(kube, observed, wanted, now)
    except RefusedError as refused:
        logger.warning("%s/%s: %s", namespace, name, refused)
        wanted = invalid(observed, now, str(refused))
        await _write(kube, observed, wanted, now)
    return wanted.requeue, observed


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


def _settled(observed: Observed, wanted: Plan, settling: Settling[tuple[str, str]]) -> Plan:
    """The plan without its status, while that may wait."""
    key = (observed.job["metadata"]["namespace"], observed.name)
    if wanted.status is None:
        settling.forget(key)
        return wanted
    left = settling.left(key, observed.job.get("status") or {}, wanted.status)
    if not left:
        return wanted
    return replace(wanted, status=None, requeue=left if wanted.requeue is None else min(left, wanted.requeue))


async def _write(kube: Kube, observed: Observed, wanted: Plan, now: datetime) -> None:
    job = observed.job
    if wanted.finalizer == "add":
        job = await _set_finalizers(kube, job, [*_finalizers(job), labels.FINALIZER])
        observed.job["metadata"]["resourceVersion"] = job["metadata"]["resourceVersion"]
        observed.job["metadata"]["finalizers"] = _finalizers(job)
    for child in wanted.apply:
        with _judged(child):
            if observed.child(child["kind"], name_of(child)) is None:
                await _make(kube, observed.job, child)
            else:
                await kube.apply(child)
    for child in wanted.create:
        with _judged(child):
            await _create(kube, observed.job, child)
    for child in wanted.delete:
        await kube.delete(kind_of(child), child["metadata"]["namespace"], name_of(child), child["metadata"]["uid"])
    if wanted.status is not None:
        await _write_status(kube, observed.job, wanted.status)
    for target, operations in wanted.patch:
        await kube.patch(RAY_CLUSTER, target["metadata"]["namespace"], name_of(target), operations)
    for happening in wanted.events:
        name = happening.name(observed.name, job["metadata"]["uid"], rfc3339(now))
        logger.info("%s/%s: %s: %s", job["metadata"]["namespace"], observed.name, happening.reason, happening.message)
        body = event(observed.job, name, happening.kind, str(happening.reason), happening.message, rfc3339(now))
        try:
            await kube.create(body)
        except ApiError as error:
            # An Event is a courtesy: the status says the same. 409: written before a crash.
            if error.status != 409:
                logger.warning("Event %s of %s was not written: %s", happening.reason, observed.name, error)
    if wanted.finalizer == "remove":
        await _set_finalizers(kube, observed.job, [f for f in _finalizers(observed.job) if f != labels.FINALIZER])


@contextlib.contextmanager
def _judged(child: Obj) -> Iterator[None]:
    """Raises RefusedError where the apiserver says that the child is invalid, or too large."""
    try:
        yield
    except ApiError as error:
        if error.status not in (400, 413, 422):
            raise
        raise RefusedError(f"the apiserver refuses {child['kind']} {name_of(child)}: {error.message}") from error


def _finalizers(job: Obj) -> list[str]:
    return list(job["metadata"].get("finalizers") or [])


async def _set_finalizers(kube: Kube, job: Obj, finalizers: list[str]) -> Obj:
    metadata = job["metadata"]
    # The version makes the write fail when anything has changed since: lists cannot be merged.
    body = {"metadata": {"finalizers": finalizers, "resourceVersion": metadata["resourceVersion"]}}
    return await kube.patch(RLJOB, metadata["namespace"], metadata["name"], body)


async def _make(kube: Kube, job: Obj, child: Obj) -> None:
    """The first apply under a name: a forced one would take over whatever has it."""
    try:
        await kube.apply(child, absent=True)
    except ApiError as error:
        if error.status != 409:
            raise
        await _check_own(kube, job, child)
        await kube.apply(child)


async def _create(kube: Kube, job: Obj, child: Obj) -> None:
    try:
        await kube.create(child)
    except ApiError as error:
        if error.status != 409:
            raise
        await _check_own(kube, job, child)


async def _check_own(kube: Kube, job: Obj, child: Obj) -> None:
    """Raises NameConflictError when the name is something's that is not the job's."""
    existing = await kube.get(kind_of(child), child["metadata"]["namespace"], name_of(child))
    if existing is not None and not controlled_by(existing, job["metadata"]["uid"]):
        raise NameConflictError(
            f"{child['kind']} {name_of(child)} exists and does not belong to this job: rename the job or remove it"
        )


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
