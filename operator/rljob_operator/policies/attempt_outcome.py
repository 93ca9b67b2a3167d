"""Whether an attempt has ended, and how: from the driver's report first, from KubeRay and the pods where it is silent.

An attempt has succeeded only by the driver's own word (exit 0) and with every step trained.
"""

import re
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Literal, get_args

from rljob_api.contract import labels
from rljob_api.contract.exit_codes import ExitCode
from rljob_api.contract.progress import Progress
from rljob_api.v1alpha1.status import AttemptReason, AttemptStatus

from rljob_operator.kube.objects import RAY_JOB_ENDED, Obj, condition, deleting, meta, parse_time
from rljob_operator.policies.attempt_time import running_since
from rljob_operator.settings import Settings
from rljob_operator.state.job_view import JobView
from rljob_operator.state.observe import Observed
from rljob_operator.state.pod_diagnosis import VAGUE, cause_of_failure, ended, ready, worst_problem

_BY_CODE: dict[int, AttemptReason] = {code: code.reason for code in ExitCode if code > ExitCode.FAILED}
"""Reasons that an exit code of the driver's says alone."""
_EXIT = re.compile(r"exit code (\d+)")
_LONGEST = 2000


@dataclass(frozen=True)
class Outcome:
    """How an attempt ended."""

    state: Literal["Succeeded", "Failed", "Suspended"]
    message: str
    exit_code: int | None = None
    early: bool = False
    """Succeeded by reaching the target of `lifecycle.earlyStop`."""
    reason: AttemptReason = "DriverFailed"


def outcome_of(view: JobView, attempt: AttemptStatus) -> Outcome | None:
    """How a current attempt has ended, by its driver, its RayJob and its pods; None while it goes on."""
    observed, now, settings = view.observed, view.now, view.settings
    report, ray_job = view.report_of(attempt.number), observed.ray_job(attempt.number)
    started = attempt.state == "Running"
    # Once a RayJob has ended KubeRay takes its pods away: a head that is gone then says nothing.
    over = ((ray_job or {}).get("status") or {}).get("jobDeploymentStatus") in RAY_JOB_ENDED
    outcome = (
        _reported(report)
        or _ray_job(ray_job, report, started, now, settings)
        or (_head_lost(observed, attempt) if started and ray_job and not over else None)
        or (None if started else _never_started(view, attempt))
    )
    return _explained(outcome, observed, attempt, report, now, settings)


def _explained(
    outcome: Outcome | None,
    observed: Observed,
    attempt: AttemptStatus,
    report: Progress | None,
    now: datetime,
    settings: Settings,
) -> Outcome | None:
    """The outcome with the cause that the attempt's pods know; None while they may still come to tell it."""
    if outcome is None or outcome.reason not in VAGUE:
        return outcome
    pods = [pod for pod in observed.ray_pods if meta(pod, "labels", labels.ATTEMPT) == str(attempt.number)]
    if cause := cause_of_failure(pods):
        return replace(outcome, reason=cause.reason, message=f"{outcome.message}; {cause.message}")
    # A driver tells of a lost worker before the kubelet tells why.
    early = report is not None and outcome.reason == "WorkerLost" and not all(ready(pod) for pod in pods)
    if early and report and _within(report.time, now, settings.cause_grace_seconds):
        return None
    return outcome


def _reported(report: Progress | None) -> Outcome | None:
    if report is None or report.state not in ("Succeeded", "Failed", "Suspended"):
        return None
    code, said = report.exit_code, report.message or ""
    if report.state == "Succeeded":
        if code != 0:
            return Outcome("Failed", f"the driver reports success with exit code {code}", code)
        if (early := report.early_stop) and early.step == report.step:
            said = (
                f"target reached at step {report.step} of {report.total_steps}: {early.target}, it is {early.value:.4g}"
            )
            return Outcome("Succeeded", said, 0, early=True, reason="Succeeded")
        if report.step != report.total_steps or not report.total_steps:
            steps = f"{report.step} of {report.total_steps} steps"
            return Outcome("Failed", f"the driver reports success after {steps}", code)
        return Outcome("Succeeded", f"all {report.total_steps} steps are done", 0, reason="Succeeded")
    if report.state == "Suspended":
        reason = _BY_CODE.get(code or ExitCode.SUSPENDED, "Suspended")
        return Outcome("Suspended", said or ExitCode.SUSPENDED.meaning, code, reason=reason)
    known = ExitCode.known(code or ExitCode.FAILED)
    said = said or (known.meaning if known else f"the driver ended with exit code {code}")
    return Outcome("Failed", said, code, reason=_reason(report.reason, code))


def _reason(reported: str | None, code: int | None) -> AttemptReason:
    """The driver's own reason; from its exit code where it gives none that is known."""
    if code in _BY_CODE and code != ExitCode.FENCED:
        return _BY_CODE[code]
    if reported in get_args(AttemptReason) and reported not in (*_BY_CODE.values(), "Succeeded"):
        return reported  # type: ignore[return-value]
    return _BY_CODE.get(code or 1, "DriverFailed")


def _ray_job(
    ray_job: Obj | None, report: Progress | None, started: bool, now: datetime, settings: Settings
) -> Outcome | None:
    if ray_job is None or deleting(ray_job):
        # A RayJob that has not been made yet is no failure; one that ran and is gone is.
        return Outcome("Failed", "the RayJob was deleted while it ran", reason="RayJobFailed") if started else None
    status = ray_job.get("status") or {}
    deployment, message = status.get("jobDeploymentStatus", ""), (status.get("message") or "").strip()
    if deployment == "ValidationFailed":
        return Outcome("Failed", f"KubeRay refuses the RayJob: {message}", reason="RayJobFailed")
    if deployment not in RAY_JOB_ENDED:
        return None
    if _within(status.get("endTime"), now, settings.report_grace_seconds):
        return None  # the driver's own report says more, and may be on its way
    if deployment == "Complete":
        at = f", last at step {report.step} of {report.total_steps}" if report else ""
        return Outcome("Failed", f"the driver ended without reporting success{at}")
    code = int(found[-1]) if (found := _EXIT.findall(message)) else None
    if (known := ExitCode.known(code)) and known.state == "Suspended":
        return Outcome("Suspended", known.meaning, code, reason=known.reason)
    reason = "RayJobFailed" if code is None else _reason(None, code)
    said = f"RayJob: {status.get('reason', 'Failed')}: {message[-_LONGEST:]}"
    return Outcome("Failed", said, code, reason=reason)


def _head_lost(observed: Observed, attempt: AttemptStatus) -> Outcome | None:
    heads = observed.group("head", attempt.number)
    alive = [pod for pod in heads if not ended(pod)]
    if alive:
        return None
    why = next((text for pod in heads if (text := _why_ended(pod))), "its pod is gone")
    return Outcome("Failed", f"the Ray head, which runs the driver, was lost: {why}", reason="PodLost")


def _why_ended(pod: Obj) -> str:
    status = pod.get("status") or {}
    for container in status.get("containerStatuses") or []:
        end = (container.get("state") or {}).get("terminated") or {}
        if end:
            return f"container {container['name']} ended ({end.get('reason', 'Error')}, exit {end.get('exitCode')})"
    return status.get("message") or status.get("reason") or condition(pod, "DisruptionTarget").get("message") or ""


def _never_started(view: JobView, attempt: AttemptStatus) -> Outcome | None:
    since, limit = running_since(view, attempt), view.settings.start_timeout_seconds
    if since is None or _within(since, view.now, limit):
        return None
    problem = worst_problem(pod for group in labels.RAY_GROUPS for pod in view.observed.group(group, attempt.number))
    if problem and problem.reason == "Unschedulable":
        return None  # waiting for free capacity is no failure, however long
    why = f": {problem.message}" if problem else ""
    return Outcome("Failed", f"the driver did not report within {limit:.0f} s{why}", reason="StartTimeout")


def _within(since: str | None, now: datetime, seconds: float) -> bool:
    return since is not None and now - parse_time(since) < timedelta(seconds=seconds)


def uncommitted(attempt: AttemptStatus) -> str:
    """The steps of an ended attempt that were not committed, in words; empty when there are none."""
    steps = (attempt.end_step or 0) - (attempt.committed_step or 0)
    if steps <= 0:
        return ""
    return f"; {steps} step{'s' if steps > 1 else ''} after step {attempt.committed_step} not committed"
