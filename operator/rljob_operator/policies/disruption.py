"""A trainer pod that is being taken away alone: a node is drained, the pod deleted.

The head's own preStop hook asks the driver to commit (rljob_trainer.cluster.prestop); a trainer pod cannot. The pod's
hook keeps its ranks until the head is gone or the grace period over, and meanwhile the operator asks in its place. An
engine's pod is replaced and costs nothing.
"""

from dataclasses import replace

from rljob_operator.kube.objects import deleting, name_of
from rljob_operator.policies.attempt_outcome import Outcome
from rljob_operator.policies.decision import Decision, wants_suspend
from rljob_operator.state.job_view import JobView
from rljob_operator.state.pod_diagnosis import ended


def leaving(view: JobView, decided: Decision) -> str | None:
    """Name of a trainer pod of the running attempt that is on its way out while the head stays; None when there is
    none."""
    attempt, report = decided.active, view.report_of(decided.status.attempt)
    if attempt is None or report is None or report.state != "Running":
        return None
    head, trainer = (view.observed.group(group, attempt.number) for group in ("head", "trainer"))
    if any(map(deleting, head)):
        return None
    return next((name_of(pod) for pod in trainer if deleting(pod) and not ended(pod)), None)


def explained(view: JobView, decided: Decision, outcome: Outcome) -> Outcome:
    """The outcome of an attempt that was asked to suspend for a pod's sake, with the pod's name."""
    if outcome.reason != "Suspended" or wants_suspend(view, decided):
        return outcome
    pods = view.observed.group("trainer", decided.active.number) if decided.active else []
    pod = next((name_of(pod) for pod in pods if deleting(pod)), None)
    return replace(outcome, message=f"{outcome.message}; trainer pod {pod} is being deleted") if pod else outcome
