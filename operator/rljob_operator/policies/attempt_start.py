"""When the next attempt begins: once nothing of the one before is left, what it needs is there, and a failed one's
back-off is over."""

from dataclasses import replace

from rljob_api.contract import names
from rljob_api.contract.exit_codes import ExitCode
from rljob_api.contract.reasons import Reason
from rljob_api.v1alpha1.status import AttemptStatus

from rljob_operator.kube.objects import RAY_JOB, deleting, name_of, rfc3339
from rljob_operator.policies import learning_health, preparation
from rljob_operator.policies.attempt_time import seconds_of
from rljob_operator.policies.decision import Decision, wants_suspend
from rljob_operator.policies.failure_policy import backoff_seconds
from rljob_operator.state.job_view import JobView
from rljob_operator.state.pod_diagnosis import worst_problem
from rljob_operator.state.refusals import refusal_text

KEPT_ATTEMPTS = 32
"""Attempts that the status lists."""


def begin_next(view: JobView, decided: Decision) -> Decision:
    """Clear up after the last attempt, then record the next one when all is there for it."""
    rest = [ray_job for ray_job in view.observed.of_kind(RAY_JOB.kind) if not deleting(ray_job)]
    decided = replace(decided, delete=(*rest, *preparation.superfluous(view, decided)))
    if wants_suspend(view, decided):
        why = what_is_left(view) if view.occupied else learning_health.why_suspended(decided)
        return decided.wait(Reason.SUSPENDED, why)
    if not view.observed.kuberay:
        return no_kuberay(view, decided)
    if view.lacks_needed:  # nothing begins, not even the time in which it is to start
        return decided.wait(*refusal_text(view.refused))
    if preparing := preparation.advance(view, decided):
        return preparing
    if view.context.spec.retriever and not view.retriever_ready:
        problem = worst_problem(view.retriever_pods)
        if problem and problem.exit_code == ExitCode.USER_ERROR:  # trying again cannot help
            decided = decided.with_end((Reason.USER_ERROR, problem.message))
        return decided.wait(Reason.WAITING_FOR_RETRIEVER, "waiting for the retriever to be ready")
    if view.occupied:
        return decided.wait(Reason.WAITING_FOR_CLEANUP, what_is_left(view), 5.0)
    last, backoff = decided.current, backoff_seconds(view, decided)
    if last and last.state == "Failed" and (left := view.left(last.end_time, backoff)):
        message = f"attempt {last.number} failed; the next starts {backoff:.0f} s after it"
        return decided.wait(Reason.WAITING_FOR_BACKOFF, message, left)
    return _begin(view, decided).wait(Reason.PODS_STARTING, "the RayJob is being created", 0.0)


def _begin(view: JobView, decided: Decision) -> Decision:
    status, now = decided.status, rfc3339(view.now)
    attempt = AttemptStatus(
        number=status.attempt + 1,
        ray_job=names.ray_job(view.context.name, status.attempt + 1),
        state="Starting",
        start_time=now,
        start_step=status.last_commit.step if status.last_commit else 0,
    )
    attempts = [*status.attempts, attempt]
    unlisted = sum(round(seconds_of(view, old)) for old in attempts[:-KEPT_ATTEMPTS])
    return decided.with_status(
        attempt=attempt.number,
        attempts=attempts[-KEPT_ATTEMPTS:],
        earlier_active_seconds=status.earlier_active_seconds + unlisted,
        ray_job=attempt.ray_job,
        start_time=status.start_time or now,
    )


def no_kuberay(view: JobView, decided: Decision) -> Decision:
    """Wait for KubeRay to be installed."""
    message = (
        "KubeRay is not installed in this cluster (there is no kind RayJob of ray.io/v1); "
        "the job goes on by itself once it is"
    )
    return decided.wait(Reason.KUBERAY_MISSING, message, view.settings.kuberay_recheck_seconds)


def what_is_left(view: JobView) -> str:
    """What of a Ray cluster is waited for to be gone, in words."""
    kinds = [f"{kind} {name}" for (kind, name) in view.observed.children if kind in ("RayJob", "RayCluster")]
    pods = [f"pod {name_of(pod)}" for pod in view.observed.ray_pods]
    return f"waiting until these are gone: {', '.join(sorted(kinds + pods)[:10])}"
