"""What follows from an attempt's failure: whether it counts, whether the job ends, and how long the next one waits.

The user's rules by reason (`lifecycle.failureRules`) come before the defaults; attempts that count are compared with
`lifecycle.backoffLimit`.
"""

from typing import Literal

from rljob_api.contract.attempt_reasons import ATTEMPT_REASONS
from rljob_api.contract.reasons import Reason
from rljob_api.v1alpha1.lifecycle import LifecycleSpec
from rljob_api.v1alpha1.status import AttemptReason

from rljob_operator.policies.attempt_outcome import Outcome
from rljob_operator.policies.decision import Decision
from rljob_operator.state.conditions import find
from rljob_operator.state.job_view import JobView

Action = Literal["Retry", "RetryUncounted", "Fail"]


def action(lifecycle: LifecycleSpec, reason: AttemptReason) -> Action:
    """What follows from an attempt's end for this reason."""
    follows = ATTEMPT_REASONS[reason].follows
    if follows == "Fail":
        return "Fail"
    chosen = next((rule.action for rule in lifecycle.failure_rules if reason in rule.reasons), None)
    return chosen or ("RetryUncounted" if follows == "RetryUncounted" else "Retry")


def count_failure(view: JobView, decided: Decision, outcome: Outcome) -> Decision:
    """With the failure counted, and the job's end if this was one too many."""
    status, lifecycle = decided.status, view.context.spec.lifecycle
    committed = status.last_commit.step if status.last_commit else 0
    progressed = lifecycle.backoff_reset == "OnProgress" and committed > status.last_failure_step
    counts = action(lifecycle, outcome.reason) != "RetryUncounted"
    decided = decided.with_status(
        failed_attempts=(0 if progressed else status.failed_attempts) + counts,
        last_failure_step=max(status.last_failure_step, committed),
    )
    return decided.with_end(_end(lifecycle, decided, outcome))


def _end(lifecycle: LifecycleSpec, decided: Decision, outcome: Outcome) -> tuple[Reason, str] | None:
    """Why the job ends with this failure; None when another attempt follows."""
    status, follows = decided.status, action(lifecycle, outcome.reason)
    if outcome.reason == "Unhealthy":
        return Reason.UNHEALTHY, outcome.message
    if outcome.reason == "UserError":
        return Reason.USER_ERROR, outcome.message
    if follows == "Fail":
        return Reason.FAILURE_RULE, f"lifecycle.failureRules end the job on {outcome.reason}: {outcome.message}"
    if follows == "Retry" and status.failed_attempts > lifecycle.backoff_limit:
        counted = lifecycle.backoff_reset == "OnProgress" and status.last_failure_step
        since = f" since step {status.last_failure_step} was committed" if counted else ""
        times = f"{status.failed_attempts} attempts failed{since}, backoffLimit is {lifecycle.backoff_limit}"
        return Reason.BACKOFF_LIMIT, f"{times}; the last ({outcome.reason}): {outcome.message}"
    return None


def backoff_seconds(view: JobView, decided: Decision) -> float:
    """Between the end of a failed attempt and the next."""
    settings, failed = view.settings, max(1, decided.status.failed_attempts)
    return float(min(settings.retry_backoff_max_seconds, settings.retry_backoff_seconds * 2 ** min(failed - 1, 16)))


def reopen(view: JobView, decided: Decision) -> Decision:
    """A job that has failed for too many failed attempts goes on when its `backoffLimit` is raised; every other end is
    final, that of a preparation (no attempt has begun then) as well."""
    status, limit = decided.status, view.context.spec.lifecycle.backoff_limit
    failed = find(status, "Failed")
    if failed is None or failed.status != "True" or failed.reason != Reason.BACKOFF_LIMIT or not status.attempt:
        return decided
    if status.failed_attempts > limit:
        return decided
    return decided.with_status(conditions=[its for its in status.conditions if its is not failed], completion_time=None)
