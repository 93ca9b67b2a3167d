"""What is decided for a job: each policy gets the view and the decision so far, and hands a new decision on.

A decision is never changed in place, nor is the status in it: a policy reads what earlier ones have decided, and no
policy changes what another one holds.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

from rljob_api.contract.reasons import Reason
from rljob_api.contract.request import Request
from rljob_api.v1alpha1.status import AttemptStatus, RLJobStatus

from rljob_operator.kube.objects import Obj
from rljob_operator.resources.context import Context
from rljob_operator.state.conditions import holds
from rljob_operator.state.job_view import ACTIVE, JobView

Patch = tuple[Obj, list[dict[str, Any]]]
"""An object, and the JSON patch of it."""
JOB_STOPPED = (Reason.STOPPED, "the job has finished")
"""Why a job that has ended has no Ray cluster."""


@dataclass(frozen=True)
class Scaling:
    """What the rollout group needs now."""

    engines: int = 0
    """Engines that the driver is to have; 0: it is asked for nothing."""
    drain: tuple[str, ...] = ()
    """Pods that the driver is to empty."""
    since: str | None = None
    """When it was first asked to empty these."""
    message: str = ""
    """What is under way; empty when nothing is."""
    refused: str = ""
    """Why it is not done; empty when it is."""


@dataclass(frozen=True)
class Decision:
    """The new status, the writes, and when to look again."""

    status: RLJobStatus
    """As the policies so far have left it."""
    context: Context
    """The job as it is rendered: as it is written, but for the number of engines, which autoscaling and quota set."""
    start: int | None = None
    """Attempt whose RayJob is to be made."""
    create: tuple[Obj, ...] = ()
    """Other objects to be created: the Job that prepares."""
    delete: tuple[Obj, ...] = ()
    patch: tuple[Patch, ...] = ()
    scaling: Scaling = Scaling()
    request: Request = field(default_factory=Request)
    """What the driver is asked: `request.json`."""
    waiting: Reason = Reason.NO_ATTEMPT
    """Why there is no Ray cluster (yet)."""
    message: str = ""
    """The same in words."""
    end: tuple[Reason, str] | None = None
    """The job ends now, for this reason."""
    requeue: tuple[float, ...] = ()
    """Seconds after which to look again; the soonest counts."""

    @property
    def current(self) -> AttemptStatus | None:
        """The latest attempt."""
        return self.status.attempts[-1] if self.status.attempts else None

    @property
    def active(self) -> AttemptStatus | None:
        """The latest attempt while it goes on."""
        current = self.current
        return current if current and current.state in ACTIVE else None

    @property
    def finished(self) -> bool:
        """Whether the job has ended for good, by its conditions."""
        return holds(self.status, "Complete") or holds(self.status, "Failed")

    def with_status(self, **fields: Any) -> "Decision":
        """With these fields of the status changed."""
        return replace(self, status=self.status.model_copy(update=fields))

    def with_attempt(self, **fields: Any) -> "Decision":
        """With these fields of the latest attempt changed."""
        *earlier, latest = self.status.attempts
        return self.with_status(attempts=[*earlier, latest.model_copy(update=fields)])

    def with_engines(self, engines: int) -> "Decision":
        """With a job that is rendered with so many engines."""
        job = self.context.job
        spec = job.spec.model_copy(update={"rollout": job.spec.rollout.model_copy(update={"replicas": engines})})
        return replace(self, context=replace(self.context, job=job.model_copy(update={"spec": spec})))

    def with_end(self, end: tuple[Reason, str] | None) -> "Decision":
        """With the end of the job, if this is one."""
        return replace(self, end=end)

    def wait(self, reason: Reason, message: str, *seconds: float) -> "Decision":
        """With why there is no Ray cluster; to be looked at again after these seconds."""
        return replace(self, waiting=reason, message=message, requeue=(*self.requeue, *seconds))

    def look_again(self, *seconds: float) -> "Decision":
        """To be looked at again after these seconds."""
        return replace(self, requeue=(*self.requeue, *seconds))


type Policy = Callable[[JobView, Decision], Decision]
"""One decision: pure, and without a change of what it is given."""


def wants_suspend(view: JobView, decided: Decision) -> bool:
    """Whether the user wants the job suspended, or learning health has paused it."""
    return view.context.spec.lifecycle.suspend or decided.status.paused is not None
