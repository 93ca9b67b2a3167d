"""Since when an attempt runs, and for how long the job's attempts have run.

An attempt's time begins with its RayJob, which may have been refused for long, and with a queue only with its
admission. The time before counts for no limit: neither `activeDeadlineSeconds` nor that within which it is to start.
"""

from rljob_api.v1alpha1.status import AttemptStatus

from rljob_operator.kube.objects import parse_time
from rljob_operator.policies.decision import Decision
from rljob_operator.state.job_view import JobView

_AT_ONCE_SECONDS = 60.0
"""A RayJob is made within a moment of its attempt; the time of one that comes later is the attempt's."""


def made(view: JobView, attempt: AttemptStatus) -> str | None:
    """When the attempt began: when its RayJob was made; None: not yet."""
    if attempt.state != "Starting":
        return attempt.start_time
    ray_job = view.observed.ray_job(attempt.number)
    if ray_job is None or attempt.start_time is None:
        return None
    created: str = ray_job["metadata"]["creationTimestamp"]
    late = (parse_time(created) - parse_time(attempt.start_time)).total_seconds() > _AT_ONCE_SECONDS
    return created if late else attempt.start_time


def running_since(view: JobView, attempt: AttemptStatus) -> str | None:
    """Since when the attempt may run: with a queue since its admission; None: not yet."""
    return attempt.admitted_time if view.context.spec.lifecycle.queue else made(view, attempt)


def record_start(view: JobView, decided: Decision) -> Decision:
    """Record when the current attempt began."""
    attempt = decided.active
    since = made(view, attempt) if attempt else None
    if attempt is None or since is None or since == attempt.start_time:
        return decided
    return decided.with_attempt(start_time=since)


def active_seconds(view: JobView, decided: Decision) -> float:
    """Seconds that attempts have run, waits between them left out."""
    total = float(decided.status.earlier_active_seconds)
    return total + sum(seconds_of(view, attempt) for attempt in decided.status.attempts)


def seconds_of(view: JobView, attempt: AttemptStatus) -> float:
    """Seconds that an attempt has run, without its time in a queue."""
    since = running_since(view, attempt)
    if not since:
        return 0.0
    end = parse_time(attempt.end_time) if attempt.end_time else view.now
    return max(0.0, (end - parse_time(since)).total_seconds())
