"""One job as a plan sees it: what was observed, and when. Read-only."""

from dataclasses import dataclass, field
from datetime import datetime, timedelta

from rljob_api.contract import names
from rljob_api.contract.progress import Progress
from rljob_api.contract.request import Request

from rljob_operator.kube.objects import Obj, condition, parse_time
from rljob_operator.resources.context import Context
from rljob_operator.settings import Settings
from rljob_operator.state.observe import Observed
from rljob_operator.state.refusals import Refusal

ACTIVE = ("Starting", "Running")
"""States of an attempt that goes on."""


@dataclass(frozen=True)
class JobView:
    """What a job's policies decide by, besides its status."""

    observed: Observed
    context: Context
    """The job as it is written."""
    now: datetime
    settings: Settings
    refused: tuple[Refusal, ...] = ()
    """Writes for the job that the apiserver refuses."""
    report: Progress | None = field(init=False)
    """The driver's last report, of whichever attempt."""
    asked: Request = field(init=False)
    """What the driver was last asked; empty when nothing."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "report", self.observed.progress())
        object.__setattr__(self, "asked", self.observed.request())

    def report_of(self, attempt: int) -> Progress | None:
        """The driver's report, when it is of this attempt."""
        return self.report if self.report and self.report.attempt == attempt else None

    @property
    def occupied(self) -> bool:
        """Whether anything of a Ray cluster is still there."""
        observed = self.observed
        return bool(observed.of_kind("RayJob") or observed.of_kind("RayCluster") or observed.ray_pods)

    @property
    def lacks_needed(self) -> bool:
        """Whether something that pods cannot do without is refused."""
        return any(refusal.needed for refusal in self.refused)

    def refuses(self, kind: str, name: str) -> bool:
        """Whether the creation of this object is refused."""
        return any(refusal.key == ("create", kind, name) for refusal in self.refused)

    @property
    def retriever_pods(self) -> list[Obj]:
        """Pods of the retriever, and those that prepare for it."""
        return [*self.observed.group("retriever"), *self.observed.group("prepare")]

    @property
    def retriever_ready(self) -> int:
        """Retriever pods that answer, by the Deployment's word; 0 while the Deployment is being changed."""
        deployment = self._retriever()
        status = (deployment or {}).get("status") or {}
        if deployment is None or status.get("observedGeneration", 0) < deployment["metadata"].get("generation", 0):
            return 0
        return min(int(status.get("readyReplicas") or 0), int(deployment["spec"].get("replicas") or 0))

    @property
    def retriever_wanted(self) -> int:
        """Retriever pods that the spec asks for, or its autoscaler."""
        if (spec := self.context.spec.retriever) is None:
            return 0
        if spec.autoscaling is None:
            return spec.replicas
        return int(((self._retriever() or {}).get("spec") or {}).get("replicas") or spec.autoscaling.min_replicas)

    @property
    def retriever_timed_out(self) -> bool:
        """Whether the Deployment has given up on its deadline."""
        return condition(self._retriever() or {}, "Progressing").get("reason") == "ProgressDeadlineExceeded"

    def _retriever(self) -> Obj | None:
        return self.observed.child("Deployment", names.retriever(self.context.name))

    def left(self, since: str | None, seconds: float) -> float:
        """Seconds until `seconds` after `since`; 0 when that is past or there is no `since`."""
        if since is None:
            return 0.0
        return max(0.0, (parse_time(since) + timedelta(seconds=seconds) - self.now).total_seconds())
