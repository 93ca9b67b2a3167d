"""From what was observed to what is to be written. Pure: no I/O, no clock; the same input gives the same plan."""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal

import orjson
from rljob_api.contract import labels, names
from rljob_api.contract.reasons import Reason
from rljob_api.errors import UserError
from rljob_api.manifest.free_form import oversized
from rljob_api.manifest.nesting import MAX_DEPTH, too_deep
from rljob_api.rules.checks import check
from rljob_api.v1alpha1.status import RLJobStatus

from rljob_operator.controller.plan_cache import Recent, footprint
from rljob_operator.kube.diff import digest, needs_apply, stamped
from rljob_operator.kube.objects import AUTOSCALER, CLAIM, DEPLOYMENT, DISRUPTION_BUDGET, Obj, deleting, name_of
from rljob_operator.policies import (
    attempt_time,
    attempts,
    autoscaling,
    deletion,
    driver_report,
    driver_request,
    failure_policy,
    kueue,
    learning_health,
    preparation,
    scaling,
)
from rljob_operator.policies.attempts import retriever_needed
from rljob_operator.policies.decision import Decision, Policy
from rljob_operator.policies.status_summary import summarise
from rljob_operator.resources import prepare, storage
from rljob_operator.resources.children import Wanted, children
from rljob_operator.resources.context import Context
from rljob_operator.resources.rayjob import ray_job
from rljob_operator.settings import Settings
from rljob_operator.state.conditions import Conditions
from rljob_operator.state.events import StatusEvent, events_between
from rljob_operator.state.job_view import JobView
from rljob_operator.state.manifest import readable, status_of, whole
from rljob_operator.state.observe import Observed
from rljob_operator.state.refusals import Refusal

type _Job = tuple[str, str]
"""Namespace and name."""
type _Source = tuple[bytes, Settings, bool]
"""All that a job is checked and rendered by: the digest of what is written, the settings, whether it has begun."""
type _Validation = tuple[list[str], Context | None, int]
"""What is wrong with a job, its context, and what that takes in memory."""
_MODEL_BYTES = 32 * 1024
"""What the models of a job take beside what is in it."""
_KEPT_BYTES = 32 * 1024 * 1024

# A job is looked at some twenty times while its pods come up, and rendered from the same spec each time.
_ACCEPTED: Recent[_Job, _Source, _Validation] = Recent(_KEPT_BYTES, lambda checked: checked[2])
_CHILDREN: Recent[_Job, tuple[_Source, bytes], list[tuple[Obj, str]]] = Recent(_KEPT_BYTES, footprint)

POLICIES: tuple[Policy, ...] = (
    # What was observed, taken into the status.
    failure_policy.reopen,
    driver_report.record,
    preparation.record,
    kueue.record_admission,
    kueue.record_late_commit,
    attempt_time.record_start,
    learning_health.lift_pause,
    # What to do.
    attempts.advance,
    autoscaling.follow,
    kueue.keep_queued_engines,
    scaling.scale,
    driver_request.ask,
    # What the user reads.
    summarise,
)
"""What is decided for a job, in this order: a later policy reads what earlier ones have decided."""
NO_KUEUE = (
    "spec.lifecycle.queue: this operator was installed without Kueue, and the job would wait for ever; install its "
    "chart with kueue.enabled: true, or leave the queue out"
)


@dataclass(frozen=True)
class Plan:
    """The writes of one reconcile, in this order."""

    finalizer: Literal["add", "remove"] | None = None
    """`add` comes first, `remove` last."""
    apply: tuple[Obj, ...] = ()
    """Server-side applies."""
    create: tuple[Obj, ...] = ()
    """Created, never applied: RayJobs, and the Job that prepares."""
    delete: tuple[Obj, ...] = ()
    status: dict[str, Any] | None = None
    """The whole new status; None: unchanged."""
    patch: tuple[tuple[Obj, list[dict[str, Any]]], ...] = ()
    """JSON patches: scaling of RayClusters. After the status that says so: once done, nothing tells that it was."""
    events: tuple[StatusEvent, ...] = ()
    requeue: float | None = None
    """Seconds until the next look, if nothing happens before."""


def plan(observed: Observed, now: datetime, settings: Settings, refused: tuple[Refusal, ...] = ()) -> Plan:
    """What to write for a job as it was observed, while these writes are refused (they are part of the plan: whether it
    is time to try them again is not the plan's to say)."""
    job = observed.job
    if deleting(job):  # before its spec and status are read: whatever is in them, the job can go
        cleanup = deletion.clear_deleted(observed, now, settings)
        return Plan(
            finalizer="remove" if cleanup.done else None,
            delete=cleanup.delete,
            events=cleanup.events,
            requeue=cleanup.requeue,
        )
    old = status_of(job)
    raw, owner, started = _as_written(job), (job["metadata"]["namespace"], observed.name), old.attempt > 0
    source = (hashlib.blake2b(orjson.dumps(raw)).digest(), settings, started)
    problems, context, _ = _ACCEPTED.get(owner, source, lambda: _validate(raw, settings, started=started))
    if context is None or problems:
        return _refused(observed, old, problems, now)
    view = JobView(observed, context, now, settings, refused)
    decided = decide(view, old)
    serves = retriever_needed(view, decided) and preparation.done(view, decided)
    wanted = Wanted(
        attempt=decided.status.attempt or 1,
        request=decided.request,
        # Without KubeRay nothing that costs is made beforehand.
        retriever=observed.kuberay or old.attempt > 0,
        retriever_running=serves,
        deployment=serves or observed.child(DEPLOYMENT.kind, names.retriever(observed.name)) is not None,
    )
    status = decided.status.to_api()
    if decided.context is context:
        rendered = _CHILDREN.get(owner, (source, orjson.dumps(wanted)), lambda: _children(context, wanted))
    else:  # scaled beyond what the spec says
        rendered = _children(decided.context, wanted)
    return Plan(
        finalizer=None if labels.FINALIZER in (job["metadata"].get("finalizers") or []) else "add",
        apply=_applies(observed, rendered),
        create=(*decided.create, *_ray_jobs(decided)),
        patch=decided.patch,
        delete=(*decided.delete, *_unwanted(observed, rendered)),
        status=status if status != (job.get("status") or {}) else None,
        events=tuple(events_between(old, decided.status)),
        requeue=min(decided.requeue, default=None),
    )


def decide(view: JobView, status: RLJobStatus) -> Decision:
    """What all policies decide, one after the other."""
    decided = Decision(status, view.context)
    for policy in POLICIES:
        decided = policy(view, decided)
    return decided


def forget(namespace: str, name: str) -> None:
    """A job is gone: nothing is kept of it."""
    _ACCEPTED.forget((namespace, name))
    _CHILDREN.forget((namespace, name))


def _validate(raw: Obj, settings: Settings, *, started: bool) -> _Validation:
    problems, context = accept(raw, settings, started=started)
    return problems, context, footprint(problems) + (footprint(raw) + _MODEL_BYTES if context else 0)


def _as_written(job: Obj) -> Obj:
    """What a job is rendered from: the spec and who it is. Annotations are not rendered, nor the generation: the
    digest of this tells more than that would."""
    names = ("name", "namespace", "uid", "labels")
    metadata = {name: job["metadata"][name] for name in names if name in job["metadata"]}
    return {key: value for key, value in job.items() if key != "status"} | {"metadata": metadata}


def accept(raw: Obj, settings: Settings, *, started: bool) -> tuple[list[str], Context | None]:
    """What is wrong with the job, as sentences, and the context to render it in when it can be read at all.

    A job that has begun is not checked again: an operator of another version must not stop it. What this one cannot
    read of it is left out, and said. However large it is, the work is linear in its size.
    """
    if path := too_deep(raw):
        return [f"{'.'.join(path[:4])}: nested more than {MAX_DEPTH} levels deep"], None
    if not started and (too_large := oversized(raw)):
        return [str(problem) for problem in too_large], None
    job, unread = readable(raw) if started else whole(raw)
    if job is None:
        return unread, None
    metadata = raw["metadata"]
    context = Context(job, metadata["namespace"], metadata["uid"], settings, tuple(unread))
    if started:
        return [], context
    problems = [str(problem) for problem in check(job)]
    if job.spec.lifecycle.queue and not settings.kueue:
        problems.append(NO_KUEUE)
    if not problems:
        try:
            children(context, Wanted(attempt=0, request={}))
            ray_job(context, 1, None)
            prepare.job(context)
        except UserError as error:
            problems = [error.message]
    return problems, context


def _refused(observed: Observed, old: RLJobStatus, problems: Iterable[str], now: datetime) -> Plan:
    """Nothing is made for a job that cannot work; the condition says why."""
    generation, why = observed.job["metadata"].get("generation", 0), "; ".join(problems)
    new = old.model_copy(deep=True)
    conditions = Conditions(new.conditions, generation, now)
    conditions.set("Accepted", False, Reason.INVALID_SPEC, why)
    new.conditions, new.observed_generation, new.message = conditions.all(), generation, why[:60000]
    status = new.to_api()
    changed = status != (observed.job.get("status") or {})
    return Plan(status=status if changed else None, events=tuple(events_between(old, new)))


def _children(context: Context, wanted: Wanted) -> list[tuple[Obj, str]]:
    """The children and the digest of each."""
    return [(child, digest(child)) for child in children(context, wanted)]


def _unwanted(observed: Observed, rendered: Iterable[tuple[Obj, str]]) -> list[Obj]:
    """What scales and guards the retriever's pods and is no longer asked for."""
    wanted = {(child["kind"], name_of(child)) for child, _ in rendered}
    found = [*observed.of_kind(AUTOSCALER.kind), *observed.of_kind(DISRUPTION_BUDGET.kind)]
    return [obj for obj in found if (obj["kind"], name_of(obj)) not in wanted and not deleting(obj)]


def _applies(observed: Observed, wanted: Iterable[tuple[Obj, str]]) -> tuple[Obj, ...]:
    found = []
    for child, its in wanted:
        live = observed.child(child["kind"], name_of(child))
        child = storage.no_smaller(child, live) if live and child["kind"] == CLAIM.kind else child
        if needs_apply(child, its, live):
            found.append(stamped(child, its))
    return tuple(found)


def _ray_jobs(decided: Decision) -> tuple[Obj, ...]:
    if decided.start is None:
        return ()
    commit = decided.status.last_commit
    return (ray_job(decided.context, decided.start, commit.name if commit else None),)
