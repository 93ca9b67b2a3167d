"""Learning health as the driver reports it: conditions, and the pause that waits for the user.

The driver finds trouble and ends its attempt where the policy says so; here it is shown, and a pause is kept. A pause
is recorded in the status, never in the user's spec. It is lifted by the annotation `rljob.io/resume: "<attempt>"`
(`rljob resume` sets it) or by `spec.lifecycle.suspend: true`, which takes its place until it is false again.
"""

from typing import get_args

from rljob_api.contract import labels
from rljob_api.contract.reasons import Reason
from rljob_api.v1alpha1.health import HealthCondition
from rljob_api.v1alpha1.status import PauseStatus

from rljob_operator.kube.objects import Obj, meta, rfc3339
from rljob_operator.policies.decision import Decision
from rljob_operator.policies.driver_report import silent_seconds
from rljob_operator.state.conditions import Conditions
from rljob_operator.state.job_view import JobView


def lift_pause(view: JobView, decided: Decision) -> Decision:
    """Forget a pause that the user has ended."""
    pause = decided.status.paused
    if pause and (view.context.spec.lifecycle.suspend or _resumed(view.observed.job) >= pause.attempt):
        return decided.with_status(paused=None)
    return decided


def pause(view: JobView, decided: Decision, attempt: int, message: str) -> Decision:
    """Keep the job suspended until the user resumes it."""
    return decided.with_status(paused=PauseStatus(attempt=attempt, message=message[:1000], time=rfc3339(view.now)))


def why_suspended(decided: Decision) -> str:
    """Who has suspended the job, and how it is resumed."""
    pause = decided.status.paused
    if pause is None:
        return "suspended by the user"
    return f"paused by learning health: {pause.message}; resume with `rljob resume {decided.context.name}`"


def health(view: JobView, decided: Decision, conditions: Conditions) -> None:
    """The conditions of learning health, as the current attempt's driver reports them; the last known without one."""
    report = view.report_of(decided.status.attempt)
    if report is None:
        return
    policies = view.context.spec.lifecycle.health
    for kind in get_args(HealthCondition):
        said = report.health.get(kind)
        if said is not None:
            conditions.set(kind, True, Reason(kind), f"{said.message} (policy {said.policy})")
        elif conditions.get(kind) or (policies.policy(kind) != "Ignore" and kind != "NonFinite"):
            conditions.set(kind, False, Reason.HEALTHY)


def reward_failures(view: JobView, decided: Decision, conditions: Conditions) -> None:
    """Whether samples get no reward, as the current attempt's driver reports it; the last known without a report."""
    report = view.report_of(decided.status.attempt)
    if report is None:
        return
    if said := report.reward_failures:
        conditions.set("RewardFailing", True, Reason.REWARD_FAILING, said.message)
    elif conditions.get("RewardFailing"):
        conditions.set("RewardFailing", False, Reason.HEALTHY)


def stalled(view: JobView, decided: Decision, conditions: Conditions) -> None:
    """Who is stuck, as the current attempt's driver reports it; the last known without a report."""
    report = view.report_of(decided.status.attempt)
    if report is None:
        return
    if (silent := silent_seconds(view, decided)) > view.settings.driver_silent_seconds:
        minutes = f"{silent // 60:.0f} min" if silent >= 120 else "90 s"
        conditions.set("Stalled", True, Reason.DRIVER_SILENT, f"the driver has not reported for more than {minutes}")
    elif said := report.stalled:
        stack = f"; stack in {said.stack}" if said.stack else ""
        conditions.set("Stalled", True, Reason.WORKER_STALLED, f"{said.message}{stack}")
    elif conditions.get("Stalled"):
        conditions.set("Stalled", False, Reason.PROGRESSING)


def _resumed(job: Obj) -> int:
    """The attempt whose pause the user has ended; 0 when the annotation is absent or no number."""
    text = str(meta(job, "annotations", labels.RESUME) or "")
    return int(text) if text.isdigit() else 0
