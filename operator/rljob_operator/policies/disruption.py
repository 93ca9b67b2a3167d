"""A trainer pod that is being taken away alone: a node is drained, the pod deleted.

The head's own preStop hook asks the driver to commit (rljob_trainer.cluster.prestop); a trainer pod cannot. The pod's
hook keeps its ranks until the head is gone or the grace period over, and meanwhile the operator asks in its place. An
engine's pod is replaced and costs nothing.
"""

from dataclasses import replace

from rljob_operator.kube.objects import deleting, name_of
from rljob_operator.policies.attempt_outcome import Verdict
from rljob_operator.state.job_view import View
from rljob_operator.state.pod_diagnosis import ended


def leaving(view: View) -> str | None:
    """Name of a trainer pod of the running attempt that is on its way out while the head stays; None when there is
    none."""
    if view.active is None or view.report is None or view.report.state != "Running":
        return None
    head, trainer = (view.observed.group(group, view.active.number) for group in ("head", "trainer"))
    if any(map(deleting, head)):
        return None
    return next((name_of(pod) for pod in trainer if deleting(pod) and not ended(pod)), None)


def explained(view: View, verdict: Verdict) -> Verdict:
    """The verdict on an attempt that was asked to suspend for a pod's sake, with the pod's name."""
    pods = view.observed.group("trainer", view.active.number) if view.active else []
    pod = next((name_of(pod) for pod in pods if deleting(pod)), None)
    if verdict.reason != "Suspended" or view.wants_suspend or pod is None:
        return verdict
    return replace(verdict, message=f"{verdict.message}; trainer pod {pod} is being deleted")
