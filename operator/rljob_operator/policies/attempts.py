"""What a job does next: attempts begin, end, are suspended and tried again.

Two rules make it safe to be killed between any two writes. An attempt is recorded in the status before its RayJob is
made, and its end before its RayJob is deleted: what the status says can always be made true by looking again. And an
attempt begins only when nothing of the one before is left.
"""

from dataclasses import dataclass, field
from typing import Literal

from rljob_api.contract import names
from rljob_api.contract.exit_codes import ExitCode
from rljob_api.contract.reasons import Reason
from rljob_api.contract.request import Request
from rljob_api.manifest.arithmetic import rollout_pods
from rljob_api.v1alpha1.status import AttemptReason, AttemptStatus

from rljob_operator.kube.objects import RAY_JOB, Obj, deleting, name_of, parse_time, rfc3339
from rljob_operator.policies import disruption, kueue, learning_health, preparation
from rljob_operator.policies.attempt_outcome import TERMINAL, Verdict, judge, uncommitted
from rljob_operator.policies.scaling import Scaling
from rljob_operator.state.conditions import find as condition_of
from rljob_operator.state.failure_causes import action
from rljob_operator.state.job_view import View
from rljob_operator.state.pod_diagnosis import find
from rljob_operator.state.refusals import said

KEPT_ATTEMPTS = 32
_MADE_SECONDS = 60.0
"""A RayJob is made within a moment of its attempt; the time of one that comes later is the attempt's."""
_STOPPED = (Reason.STOPPED, "the job has finished")


@dataclass
class Step:
    """What the lifecycle wants done in this pass, and why it waits."""

    create: int | None = None
    """Attempt whose RayJob is to be made."""
    delete: list[Obj] = field(default_factory=list)
    waiting: Reason = Reason.NO_ATTEMPT
    """Why there is no Ray cluster (yet)."""
    message: str = ""
    make: list[Obj] = field(default_factory=list)
    """Other objects to be created: the Job that prepares."""
    finish: tuple[Reason, str] | None = None
    """The job ends now, for this reason."""
    requeue: list[float] = field(default_factory=list)
    """Seconds after which to look again; the soonest counts."""

    def wait(self, reason: Reason, message: str, seconds: float | None = None) -> "Step":
        """Nothing to do but wait."""
        self.waiting, self.message = reason, message
        if seconds is not None:
            self.requeue.append(seconds)
        return self


def advance(view: View) -> Step:
    """Decide the next step, and record attempts in `view.status`."""
    _reopen(view)
    view.fold_report()
    preparation.fold(view)
    kueue.fold(view)
    kueue.settle(view)
    _fold_start(view)
    learning_health.lift(view)
    if view.finished:
        return _finished(view)
    step = Step()
    if limit := view.context.spec.lifecycle.active_deadline_seconds:
        if view.active_seconds() >= limit:
            return _deadline(view, step, limit)
        if view.active and view.begun(view.active):
            step.requeue.append(limit - view.active_seconds())
    return _active(view, view.active, step) if view.active else _idle(view, step)


def _reopen(view: View) -> None:
    """A job that has failed for too many failed attempts goes on when its `backoffLimit` is raised; every other end is
    final, that of a preparation (no attempt has begun then) as well."""
    status, limit = view.status, view.context.spec.lifecycle.backoff_limit
    failed = condition_of(status, "Failed")
    if failed is None or failed.status != "True" or failed.reason != Reason.BACKOFF_LIMIT or not status.attempt:
        return
    if status.failed_attempts <= limit:
        status.conditions.remove(failed)
        status.completion_time = None


def _fold_start(view: View) -> None:
    """An attempt starts when its RayJob is made, which may have been refused for long."""
    attempt = view.active
    ray_job = view.observed.ray_job(attempt.number) if attempt and attempt.state == "Starting" else None
    if attempt is None or ray_job is None or attempt.start_time is None:
        return
    made = ray_job["metadata"]["creationTimestamp"]
    if (parse_time(made) - parse_time(attempt.start_time)).total_seconds() > _MADE_SECONDS:
        attempt.start_time = made


def request(view: View, scaling: Scaling) -> Request:
    """What the driver is asked: `request.json`. The same as before while nothing changes, or while there is no driver
    to ask; written for the first attempt from the start."""
    old = view.observed.request()
    if old and view.status.attempt and view.active is None:
        return old | {"drain": [], "drainSince": None} if old.get("drain") else old
    suspend = view.wants_suspend or disruption.leaving(view) is not None
    wanted: Request = {"suspend": suspend, "attempt": view.status.attempt or 1}
    engines = scaling.engines or (0 if view.status.attempt else rollout_pods(view.context.spec))
    if engines:
        wanted |= {"engines": engines, "drain": list(scaling.drain), "drainSince": scaling.since}
    elif "engines" in old:
        wanted |= {"engines": None, "drain": [], "drainSince": None}
    if wanted.items() <= old.items():
        return old
    asked = rfc3339(view.now) if suspend else None
    if asked and old.get("suspend") is True and old.get("attempt") == view.status.attempt:
        asked = str(old.get("requestedAt") or asked)
    generation = view.observed.job["metadata"].get("generation", 0)
    return {**wanted, "generation": generation, "requestedAt": asked}


def retriever_needed(view: View) -> bool:
    """Whether the retriever has pods: not while the job is suspended or finished."""
    return not view.finished and (not view.wants_suspend or view.active is not None)


def _active(view: View, attempt: AttemptStatus, step: Step) -> Step:
    """The current attempt goes on, or has ended."""
    observed = view.observed
    verdict = _verdict(view, attempt, step)
    if verdict:
        return _record(view, attempt, verdict, step)
    ray_job = observed.ray_job(attempt.number)
    if ray_job is None:
        if not observed.kuberay:
            return step.wait(*_no_kuberay(view))
        if view.occupied:
            return step.wait(Reason.WAITING_FOR_CLEANUP, _what_is_left(view), 5.0)
        step.create = attempt.number
        if view.lacking or view.refuses(RAY_JOB.kind, attempt.ray_job):
            return step.wait(*said(view.refused))
        return step.wait(Reason.PODS_STARTING, "the RayJob is being created")
    if kueue.queued(view):
        return step  # Kueue's word on it is an event
    if view.report and view.report.state != "Running":  # the pods may still tell why
        step.requeue.append(view.left(view.report.time, view.settings.cause_grace_seconds) + 1.0)
    if view.report and attempt.state == "Starting":
        attempt.state = "Running"
    if attempt.state == "Starting":
        step.requeue.append(view.left(view.begun(attempt), view.settings.start_timeout_seconds) + 1.0)
    if (end := (ray_job.get("status") or {}).get("endTime")) is not None:
        step.requeue.append(view.left(end, view.settings.report_grace_seconds) + 1.0)
    return step


def _verdict(view: View, attempt: AttemptStatus, step: Step) -> Verdict | None:
    """How the current attempt has ended; None while it goes on."""
    observed = view.observed
    pods = [pod for group in ("head", "trainer", "rollout") for pod in observed.group(group, attempt.number)]
    judged = judge(observed, attempt, find(pods), view.now, view.settings, view.begun(attempt))
    if kueue.taken_back(view) and not view.wants_suspend:
        return None if kueue.held(view) else kueue.evicted(view, attempt, judged)
    verdict = judged or _silent(view, step) or _suspended(view, attempt, step)
    return disruption.explained(view, verdict) if verdict else None


def _silent(view: View, step: Step) -> Verdict | None:
    """The verdict on a driver that has stopped to report: its process hangs, or Ray does."""
    silent, limits = view.driver_silent, (view.settings.driver_silent_seconds, view.settings.driver_lost_seconds)
    if view.report and view.report.heartbeat_seconds:
        step.requeue += [limit - silent + 1.0 for limit in limits if silent <= limit]
    if silent <= limits[1]:
        return None
    return Verdict("Failed", f"the driver has not reported for {silent:.0f} s", reason="WorkerStuck")


def _idle(view: View, step: Step) -> Step:
    """No attempt goes on: clear up after the last, then begin the next when all is there for it."""
    current = view.current
    step.delete = [ray_job for ray_job in view.observed.of_kind(RAY_JOB.kind) if not deleting(ray_job)]
    step.delete += preparation.superfluous(view)
    if view.wants_suspend:
        return step.wait(
            Reason.SUSPENDED, _what_is_left(view) if view.occupied else learning_health.why_suspended(view)
        )
    if not view.observed.kuberay:
        return step.wait(*_no_kuberay(view))
    if view.lacking:  # nothing begins, not even the time in which it is to start
        return step.wait(*said(view.refused))
    if preparing := preparation.advance(view):
        step.make, step.finish = preparing.make, preparing.finish
        if any(view.refuses(job["kind"], name_of(job)) for job in step.make):
            return step.wait(*said(view.refused))
        return step.wait(Reason.WAITING_FOR_RETRIEVER, preparing.message)
    if view.context.spec.retriever and not view.retriever_ready:
        trouble = find(view.retriever_pods)
        if trouble and trouble.exit_code == ExitCode.USER_ERROR:  # trying again cannot help
            step.finish = (Reason.USER_ERROR, trouble.message)
        return step.wait(Reason.WAITING_FOR_RETRIEVER, "waiting for the retriever to be ready")
    if view.occupied:
        return step.wait(Reason.WAITING_FOR_CLEANUP, _what_is_left(view), 5.0)
    if current and current.state == "Failed" and (left := view.left(current.end_time, _backoff(view))):
        message = f"attempt {current.number} failed; the next starts {_backoff(view):.0f} s after it"
        return step.wait(Reason.WAITING_FOR_BACKOFF, message, left)
    _begin(view)
    step.requeue.append(0.0)
    return step.wait(Reason.PODS_STARTING, "the RayJob is being created")


def _begin(view: View) -> None:
    status = view.status
    status.attempt += 1
    now = rfc3339(view.now)
    attempt = AttemptStatus(
        number=status.attempt,
        ray_job=names.ray_job(view.context.name, status.attempt),
        state="Starting",
        start_time=now,
        start_step=status.last_commit.step if status.last_commit else 0,
    )
    attempts = [*status.attempts, attempt]
    for old in attempts[:-KEPT_ATTEMPTS]:
        status.earlier_active_seconds += round(view.seconds_of(old))
    status.attempts = attempts[-KEPT_ATTEMPTS:]
    status.ray_job = attempt.ray_job
    status.start_time = status.start_time or now
    view.report = None


def _suspended(view: View, attempt: AttemptStatus, step: Step) -> Verdict | None:
    """The verdict of a suspend that need not, or will not, wait for the driver any longer."""
    if not view.wants_suspend:
        return None
    if view.report is None:
        return Verdict("Suspended", "suspended before the driver had started", reason="Suspended")
    asked = view.observed.request()
    limit = view.context.spec.lifecycle.suspend_timeout_seconds
    if asked.get("suspend") is not True or asked.get("attempt") != attempt.number:
        step.requeue.append(limit + 1.0)
        return None
    if left := view.left(str(asked.get("requestedAt") or rfc3339(view.now)), limit):
        step.requeue.append(left + 1.0)
        return None
    return Verdict("Suspended", f"the driver did not commit within {limit} s", reason="Suspended")


def _record(view: View, attempt: AttemptStatus, verdict: Verdict, step: Step) -> Step:
    """Write the end of an attempt into the status. Its RayJob is touched in a later pass only."""
    attempt.exit_code = verdict.exit_code
    _close(view, attempt, verdict.state, verdict.reason, verdict.message)
    step.requeue = [0.0]
    if verdict.early and view.context.spec.lifecycle.early_stop is None:
        verdict = Verdict("Failed", f"the driver reports a target that the job does not have: {verdict.message}", 0)
        _close(view, attempt, verdict.state, verdict.reason, verdict.message)
    if verdict.state == "Succeeded":
        step.finish = (Reason.TARGET_REACHED if verdict.early else Reason.SUCCEEDED, verdict.message)
    elif verdict.exit_code == ExitCode.PAUSED:
        learning_health.pause(view, attempt.number, verdict.message)
    elif verdict.state == "Failed":
        step.finish = _failed(view, verdict)
    if step.finish:
        return step.wait(*_STOPPED)
    return step.wait(Reason.WAITING_FOR_CLEANUP, verdict.message)


def _close(
    view: View, attempt: AttemptStatus, state: Literal["Succeeded", "Failed", "Suspended"], reason: AttemptReason,
    message: str,
) -> None:  # fmt: skip
    """The end of an attempt: how, why, and what the next one starts from."""
    status = view.status
    made = view.begun(attempt) is not None or view.context.spec.lifecycle.queue is not None
    attempt.state, attempt.reason, attempt.message = state, reason, message
    attempt.end_time = rfc3339(view.now)
    if not made:  # its RayJob was refused: no time of it counts
        attempt.start_time = attempt.end_time
    attempt.committed_step = status.last_commit.step if status.last_commit else 0
    attempt.end_step = max(status.step if view.report else 0, attempt.committed_step)
    if state != "Succeeded":
        attempt.message += uncommitted(attempt)


def _failed(view: View, verdict: Verdict) -> tuple[Reason, str] | None:
    """Count a failure. The job's end, if this was the last straw."""
    status, lifecycle = view.status, view.context.spec.lifecycle
    committed = status.last_commit.step if status.last_commit else 0
    if lifecycle.backoff_reset == "OnProgress" and committed > status.last_failure_step:
        status.failed_attempts = 0
    status.last_failure_step = max(status.last_failure_step, committed)
    follows = action(lifecycle, verdict.reason)
    if follows != "RetryUncounted":
        status.failed_attempts += 1
    if verdict.reason == "Unhealthy":
        return Reason.UNHEALTHY, verdict.message
    if verdict.reason == "UserError":
        return Reason.USER_ERROR, verdict.message
    if follows == "Fail":
        return Reason.FAILURE_RULE, f"lifecycle.failureRules end the job on {verdict.reason}: {verdict.message}"
    if follows == "Retry" and status.failed_attempts > lifecycle.backoff_limit:
        counted = lifecycle.backoff_reset == "OnProgress" and status.last_failure_step
        since = f" since step {status.last_failure_step} was committed" if counted else ""
        times = f"{status.failed_attempts} attempts failed{since}, backoffLimit is {lifecycle.backoff_limit}"
        return Reason.BACKOFF_LIMIT, f"{times}; the last ({verdict.reason}): {verdict.message}"
    return None


def _deadline(view: View, step: Step, limit: int) -> Step:
    if attempt := view.active:
        _close(view, attempt, "Failed", "DeadlineExceeded", f"stopped after activeDeadlineSeconds {limit}")
    step.requeue = [0.0]
    step.finish = (Reason.DEADLINE, f"the job was active for longer than activeDeadlineSeconds {limit}")
    return step.wait(*_STOPPED)


def _finished(view: View) -> Step:
    """Let KubeRay take the cluster down after the driver's end; help where it does not. Then the job's own end."""
    step = Step().wait(*_STOPPED)
    step.delete = preparation.superfluous(view)
    current = view.current
    for ray_job in view.observed.of_kind(RAY_JOB.kind):
        if deleting(ray_job):
            continue
        if current is None or name_of(ray_job) != current.ray_job:
            step.delete.append(ray_job)
        elif (ray_job.get("status") or {}).get("jobDeploymentStatus") not in TERMINAL:
            reported = current.exit_code is not None
            waited = reported and not kueue.suspended(ray_job)
            left = view.left(current.end_time, view.settings.report_grace_seconds) if waited else 0.0
            if left:
                step.requeue.append(left + 1.0)
            else:
                step.delete.append(ray_job)
    ttl = view.context.spec.lifecycle.ttl_seconds_after_finished
    if ttl is not None:
        if left := view.left(view.status.completion_time, ttl):
            step.requeue.append(left + 1.0)
        else:
            step.delete.append(view.observed.job)
    return step


def _backoff(view: View) -> float:
    settings, failed = view.settings, max(1, view.status.failed_attempts)
    return float(min(settings.retry_backoff_max_seconds, settings.retry_backoff_seconds * 2 ** min(failed - 1, 16)))


def _no_kuberay(view: View) -> tuple[Reason, str, float]:
    message = (
        "KubeRay is not installed in this cluster (there is no kind RayJob of ray.io/v1); "
        "the job goes on by itself once it is"
    )
    return Reason.KUBERAY_MISSING, message, view.settings.kuberay_recheck_seconds


def _what_is_left(view: View) -> str:
    kinds = [f"{kind} {name}" for (kind, name) in view.observed.children if kind in ("RayJob", "RayCluster")]
    pods = [f"pod {name_of(pod)}" for pod in view.observed.ray_pods]
    return f"waiting until these are gone: {', '.join(sorted(kinds + pods)[:10])}"
