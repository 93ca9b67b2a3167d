"""What the driver reports (`progress.json`), and what follows when it stops to."""

from typing import get_args

from rljob_api.v1alpha1.status import CommitStatus, RLJobStatus

from rljob_operator.kube.objects import parse_time, rfc3339
from rljob_operator.policies.attempt_outcome import Outcome
from rljob_operator.policies.decision import Decision
from rljob_operator.state.job_view import JobView

_STAGES = get_args(RLJobStatus.model_fields["stage"].annotation)


def record(view: JobView, decided: Decision) -> Decision:
    """Take what the current attempt's driver reports into the status."""
    old, report = decided.status, view.report_of(decided.status.attempt)
    if report is None:
        return decided
    scores = {name: _short(score) for name, score in report.evaluation.items() if score is not None}
    new = {
        "stage": report.stage if report.stage in _STAGES else "",
        "policy_version": report.policy_version,
        "evaluation": dict(list(scores.items())[:64]),
    }
    if report.total_steps:  # not before the driver has read its data and its commit
        new |= {"step": report.step, "total_steps": report.total_steps}
        new["progress"] = f"{report.step}/{report.total_steps}"
    if report.reward is not None:
        new["reward"] = _short(report.reward)
    if report.tokens_per_second is not None:
        new["tokens_per_second"] = f"{report.tokens_per_second:.0f}"
    if report.goodput is not None:
        new["goodput"] = f"{report.goodput:.3f}"
    if report.time != old.last_progress_time or old.last_report_seen is None:
        new |= {"last_progress_time": report.time, "last_report_seen": rfc3339(view.now)}
    if commit := report.last_commit:
        new["last_commit"] = CommitStatus(
            name=commit.name, step=commit.step, policy_version=commit.policy_version, time=commit.time
        )
    return decided.with_status(**new)


def silent_seconds(view: JobView, decided: Decision) -> float:
    """Seconds without a report that the current attempt's driver has promised; 0 when it promised none. By the
    operator's own clock: the driver's may differ."""
    report = view.report_of(decided.status.attempt)
    if report is None or report.state != "Running" or decided.active is None or not report.heartbeat_seconds:
        return 0.0
    seen = decided.status.last_report_seen
    return (view.now - parse_time(seen)).total_seconds() if seen else 0.0


def silence(view: JobView, decided: Decision) -> tuple[Outcome | None, tuple[float, ...]]:
    """The outcome of an attempt whose driver has stopped to report (its process hangs, or Ray does); None while that
    need not be so, with the seconds after which it has to be looked at again."""
    limits = (view.settings.driver_silent_seconds, view.settings.driver_lost_seconds)
    silent, report = silent_seconds(view, decided), view.report_of(decided.status.attempt)
    if silent > limits[1]:
        return Outcome("Failed", f"the driver has not reported for {silent:.0f} s", reason="WorkerStuck"), ()
    if report is None or not report.heartbeat_seconds:
        return None, ()
    return None, tuple(limit - silent + 1.0 for limit in limits if silent <= limit)


def _short(number: float) -> str:
    return f"{number:.4g}"
