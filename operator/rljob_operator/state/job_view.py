"""One job as a plan sees it: what was observed, and the new status in the making."""

from dataclasses import dataclass, field
from datetime import datetime, timedelta

from rljob_api.contract import names
from rljob_api.contract.progress import Progress
from rljob_api.v1alpha1.status import AttemptStatus, CommitStatus, RLJobStatus

from rljob_operator.kube.objects import Obj, condition, parse_time, rfc3339
from rljob_operator.resources.context import Context
from rljob_operator.settings import Settings
from rljob_operator.state.conditions import holds
from rljob_operator.state.observe import Observed
from rljob_operator.state.pod_diagnosis import ready
from rljob_operator.state.refusals import Refusal

STAGES = ("", "Prepare", "SFT", "RL", "Evaluate", "Generate", "Done")
ACTIVE = ("Starting", "Running")
"""States of an attempt that goes on."""


@dataclass
class View:
    """Observed and status of one job. `status` starts as a copy of the old one and is changed in place."""

    observed: Observed
    context: Context
    status: RLJobStatus
    now: datetime
    settings: Settings
    refused: tuple[Refusal, ...] = ()
    """Writes for the job that the apiserver refuses."""
    report: Progress | None = field(init=False)
    """The driver's report, when it is the current attempt's."""

    def __post_init__(self) -> None:
        report = self.observed.progress()
        self.report = report if report and report.attempt == self.status.attempt else None

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
        """Whether the job has ended for good."""
        return holds(self.status, "Complete") or holds(self.status, "Failed")

    @property
    def wants_suspend(self) -> bool:
        """Whether the user wants the job suspended, or learning health has paused it."""
        return self.context.spec.lifecycle.suspend or self.status.paused is not None

    @property
    def occupied(self) -> bool:
        """Whether anything of a Ray cluster is still there."""
        observed = self.observed
        return bool(observed.of_kind("RayJob") or observed.of_kind("RayCluster") or observed.ray_pods)

    @property
    def lacking(self) -> bool:
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
        deployment = self.observed.child("Deployment", names.retriever(self.context.name))
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
        deployment = self.observed.child("Deployment", names.retriever(self.context.name)) or {}
        return int((deployment.get("spec") or {}).get("replicas") or spec.autoscaling.min_replicas)

    @property
    def retriever_timed_out(self) -> bool:
        """Whether the Deployment has given up on its deadline."""
        deployment = self.observed.child("Deployment", names.retriever(self.context.name))
        return (
            bool(deployment) and condition(deployment or {}, "Progressing").get("reason") == "ProgressDeadlineExceeded"
        )

    def ready(self, group: str) -> int:
        """Ready pods of a group of the current attempt."""
        return sum(ready(pod) for pod in self.observed.group(group, self.status.attempt))

    def left(self, since: str | None, seconds: float) -> float:
        """Seconds until `seconds` after `since`; 0 when that is past or there is no `since`."""
        if since is None:
            return 0.0
        return max(0.0, (parse_time(since) + timedelta(seconds=seconds) - self.now).total_seconds())

    def active_seconds(self) -> float:
        """Seconds that attempts have run, waits between them left out."""
        total = float(self.status.earlier_active_seconds)
        return total + sum(map(self.seconds_of, self.status.attempts))

    def seconds_of(self, attempt: AttemptStatus) -> float:
        """Seconds that an attempt has run, without its time in a queue."""
        begin = self.begun(attempt)
        if not begin:
            return 0.0
        end = parse_time(attempt.end_time) if attempt.end_time else self.now
        return max(0.0, (end - parse_time(begin)).total_seconds())

    def begun(self, attempt: AttemptStatus) -> str | None:
        """Since when an attempt may run: since its RayJob is there; with a queue, since its admission (None: not
        yet)."""
        if self.context.spec.lifecycle.queue:
            return attempt.admitted_time
        waits = attempt.state == "Starting" and self.observed.ray_job(attempt.number) is None
        return None if waits else attempt.start_time

    @property
    def driver_silent(self) -> float:
        """Seconds without a report that the current attempt's driver has promised; 0 when it promised none. By the
        operator's own clock: the driver's may differ."""
        report, active = self.report, self.active
        if report is None or report.state != "Running" or active is None or not report.heartbeat_seconds:
            return 0.0
        seen = self.status.last_report_seen
        return (self.now - parse_time(seen)).total_seconds() if seen else 0.0

    def fold_report(self) -> None:
        """Take what the driver reports into the status."""
        report, status = self.report, self.status
        if report is None:
            return
        status.stage = report.stage if report.stage in STAGES else ""  # type: ignore[assignment]
        if report.total_steps:  # not before the driver has read its data and its commit
            status.step, status.total_steps = report.step, report.total_steps
            status.progress = f"{report.step}/{report.total_steps}"
        status.policy_version = report.policy_version
        status.reward = status.reward if report.reward is None else _short(report.reward)
        if report.tokens_per_second is not None:
            status.tokens_per_second = f"{report.tokens_per_second:.0f}"
        status.goodput = status.goodput if report.goodput is None else f"{report.goodput:.3f}"
        scores = {name: _short(score) for name, score in report.evaluation.items() if score is not None}
        status.evaluation = dict(list(scores.items())[:64])
        if report.time != status.last_progress_time or status.last_report_seen is None:
            status.last_progress_time, status.last_report_seen = report.time, rfc3339(self.now)
        if commit := report.last_commit:
            status.last_commit = CommitStatus(
                name=commit.name, step=commit.step, policy_version=commit.policy_version, time=commit.time
            )


def _short(number: float) -> str:
    return f"{number:.4g}"
