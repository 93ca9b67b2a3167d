"""What a job's attempts do now: the current one goes on or ends, or the next one begins.

Two rules make it safe to be killed between any two writes. An attempt is recorded in the status before its RayJob is
made, and its end before its RayJob is deleted: what the status says can always be made true by looking again. And an
attempt begins only when nothing of the one before is left.
"""

from dataclasses import replace
from typing import Literal

from rljob_api.contract.exit_codes import ExitCode
from rljob_api.contract.reasons import Reason
from rljob_api.v1alpha1.status import AttemptReason, AttemptStatus

from rljob_operator.kube.objects import RAY_JOB, rfc3339
from rljob_operator.policies import deletion, disruption, driver_report, driver_request, kueue, learning_health
from rljob_operator.policies.attempt_outcome import Outcome, outcome_of, uncommitted
from rljob_operator.policies.attempt_start import begin_next, no_kuberay, what_is_left
from rljob_operator.policies.attempt_time import active_seconds, running_since
from rljob_operator.policies.decision import JOB_STOPPED, Decision, wants_suspend
from rljob_operator.policies.failure_policy import count_failure
from rljob_operator.state.job_view import JobView
from rljob_operator.state.refusals import refusal_text


def advance(view: JobView, decided: Decision) -> Decision:
    """The next step of the job's attempts, recorded in the status."""
    if decided.finished:
        return deletion.clear_finished(view, decided)
    if limit := view.context.spec.lifecycle.active_deadline_seconds:
        left = limit - active_seconds(view, decided)
        if left <= 0:
            return _end_at_deadline(view, decided, limit)
        if decided.active and running_since(view, decided.active):
            decided = decided.look_again(left)
    attempt = decided.active
    if attempt is None:
        return begin_next(view, decided)
    outcome, waits = _outcome(view, decided, attempt)
    return _end(view, decided, attempt, outcome) if outcome else _go_on(view, decided.look_again(*waits), attempt)


def retriever_needed(view: JobView, decided: Decision) -> bool:
    """Whether the retriever has pods: not while the job is suspended or finished."""
    return not decided.finished and (not wants_suspend(view, decided) or decided.active is not None)


def _outcome(view: JobView, decided: Decision, attempt: AttemptStatus) -> tuple[Outcome | None, tuple[float, ...]]:
    """How the current attempt has ended; None while it goes on, with the seconds after which to look again."""
    outcome, waits = outcome_of(view, attempt), tuple[float, ...]()
    if kueue.taken_back(view, decided) and not wants_suspend(view, decided):
        held = kueue.deactivated(view, decided)
        return None if held else kueue.evicted(view, decided, attempt, outcome), ()
    if outcome is None:
        outcome, waits = driver_report.silence(view, decided)
    if outcome is None:
        outcome, more = driver_request.suspended(view, decided, attempt)
        waits += more
    return disruption.explained(view, decided, outcome) if outcome else None, waits


def _go_on(view: JobView, decided: Decision, attempt: AttemptStatus) -> Decision:
    """Make the RayJob of the current attempt, or wait for what it does."""
    observed, settings, report = view.observed, view.settings, view.report_of(attempt.number)
    ray_job = observed.ray_job(attempt.number)
    if ray_job is None:
        if not observed.kuberay:
            return no_kuberay(view, decided)
        if view.occupied:
            return decided.wait(Reason.WAITING_FOR_CLEANUP, what_is_left(view), 5.0)
        decided = replace(decided, start=attempt.number)
        if view.lacks_needed or view.refuses(RAY_JOB.kind, attempt.ray_job):
            return decided.wait(*refusal_text(view.refused))
        return decided.wait(Reason.PODS_STARTING, "the RayJob is being created")
    if kueue.queued(view, decided):
        return decided  # Kueue's word on it is an event
    if report and report.state != "Running":  # the pods may still tell why
        decided = decided.look_again(view.left(report.time, settings.cause_grace_seconds) + 1.0)
    if attempt.state == "Starting":
        if report:
            decided = decided.with_attempt(state="Running")
        else:
            limit = settings.start_timeout_seconds
            decided = decided.look_again(view.left(running_since(view, attempt), limit) + 1.0)
    if (end := (ray_job.get("status") or {}).get("endTime")) is not None:
        decided = decided.look_again(view.left(end, settings.report_grace_seconds) + 1.0)
    return decided


def _end(view: JobView, decided: Decision, attempt: AttemptStatus, outcome: Outcome) -> Decision:
    """Record the end of an attempt, and what follows from it. Its RayJob is touched in a later pass only."""
    code = outcome.exit_code
    if outcome.early and view.context.spec.lifecycle.early_stop is None:
        outcome = Outcome("Failed", f"the driver reports a target that the job does not have: {outcome.message}", 0)
    decided = _close(view, decided, attempt, outcome.state, outcome.reason, outcome.message)
    decided = decided.with_attempt(exit_code=code).look_again(0.0)
    if outcome.state == "Succeeded":
        reason = Reason.TARGET_REACHED if outcome.early else Reason.SUCCEEDED
        decided = decided.with_end((reason, outcome.message))
    elif outcome.exit_code == ExitCode.PAUSED:
        decided = learning_health.pause(view, decided, attempt.number, outcome.message)
    elif outcome.state == "Failed":
        decided = count_failure(view, decided, outcome)
    if decided.end:
        return decided.wait(*JOB_STOPPED)
    return decided.wait(Reason.WAITING_FOR_CLEANUP, outcome.message)


def _end_at_deadline(view: JobView, decided: Decision, limit: int) -> Decision:
    if attempt := decided.active:
        message = f"stopped after activeDeadlineSeconds {limit}"
        decided = _close(view, decided, attempt, "Failed", "DeadlineExceeded", message)
    message = f"the job was active for longer than activeDeadlineSeconds {limit}"
    return decided.with_end((Reason.DEADLINE, message)).wait(*JOB_STOPPED, 0.0)


def _close(
    view: JobView, decided: Decision, attempt: AttemptStatus, state: Literal["Succeeded", "Failed", "Suspended"],
    reason: AttemptReason, message: str,
) -> Decision:  # fmt: skip
    """The end of an attempt: how, why, and what the next one starts from."""
    status, report, now = decided.status, view.report_of(attempt.number), rfc3339(view.now)
    ran = running_since(view, attempt) is not None or view.context.spec.lifecycle.queue is not None
    committed = status.last_commit.step if status.last_commit else 0
    reached = max(status.step if report else 0, committed)
    closed = attempt.model_copy(
        update={
            "state": state, "reason": reason, "message": message, "end_time": now, "committed_step": committed,
            "end_step": reached, "start_time": attempt.start_time if ran else now,
        }
    )  # fmt: skip
    if state != "Succeeded":
        message += uncommitted(closed)
    return decided.with_status(attempts=[*status.attempts[:-1], closed.model_copy(update={"message": message})])
