"""`spec.lifecycle`: suspend, retries, deadlines and what to do when learning goes wrong."""

from typing import Annotated, Literal

from pydantic import Field

from rljob_api.v1alpha1.base import ApiModel, NonNegativeInt, PositiveInt
from rljob_api.v1alpha1.health import EarlyStop, HealthPolicies, StallLimits

RetryableReason = Literal[
    "OutOfMemory",
    "CommunicationError",
    "WorkerLost",
    "WorkerStuck",
    "StorageFull",
    "LeaseLost",
    "DriverFailed",
    "Preempted",
    "Evicted",
    "NodeLost",
    "PodLost",
    "RayJobFailed",
    "StartTimeout",
]


QueueName = Annotated[str, Field(pattern=r"^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$", max_length=63)]
"""A name that is the value of a label, too."""


class QueueSpec(ApiModel):
    """Admission by Kueue: an attempt starts once its Workload is admitted."""

    name: QueueName
    """LocalQueue of the job's namespace."""
    priority_class: QueueName | None = None
    """WorkloadPriorityClass: the order in the queue, and who is preempted for whom."""


class GangSpec(ApiModel):
    """All pods of an attempt, or none, by a batch scheduler that KubeRay is installed with (`batchScheduler.name`)."""

    scheduler: Literal["volcano", "yunikorn", "scheduler-plugins", "kai-scheduler"]
    """The batch scheduler; `scheduler-plugins` is coscheduling."""
    queue: Annotated[str, Field(pattern=r"^[A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?$", max_length=63)] | None = None
    """Queue of the scheduler's; kai-scheduler needs one, scheduler-plugins has none."""


class FailureRule(ApiModel):
    """What follows when an attempt ends for one of these reasons. The first rule that names the reason counts."""

    reasons: Annotated[list[RetryableReason], Field(min_length=1, max_length=16)]
    """Reasons, as `status.attempts[].reason` gives them. A user's mistake is never tried again and has no rule."""
    action: Literal["Retry", "RetryUncounted", "Fail"]
    """`Retry`: counts against backoffLimit. `RetryUncounted`: does not. `Fail`: the job fails at once."""


class LifecycleSpec(ApiModel):
    """How the job starts, stops, retries and ends."""

    suspend: bool = False
    """Commit and release all pods; set to false to resume from that commit."""
    suspend_timeout_seconds: PositiveInt = 120
    """How long a suspend waits for the commit."""
    backoff_limit: NonNegativeInt = 3
    """Failed attempts after which the job fails. Each retry resumes from the last commit."""
    backoff_reset: Literal["OnProgress", "Never"] = "OnProgress"
    """`OnProgress`: an attempt that has committed new steps gives all retries back before its failure is counted, so
    that backoffLimit bounds failures in a row without progress. `Never`: it bounds the failures of the whole job."""
    failure_rules: Annotated[list[FailureRule], Field(max_length=16)] = Field(default_factory=list)
    """Rules by the reason of a failure; without one, `Preempted` is RetryUncounted and all others Retry."""
    active_deadline_seconds: PositiveInt | None = None
    """The job fails when it is active for longer."""
    ttl_seconds_after_finished: NonNegativeInt | None = None
    """A finished RLJob (and its claim) is deleted after this time; kept by default."""
    termination_grace_period_seconds: PositiveInt = 60
    """Time between SIGTERM and SIGKILL for head and ranks."""
    health: HealthPolicies = Field(default_factory=HealthPolicies)
    """Policies for learning health."""
    stall: StallLimits = Field(default_factory=StallLimits)
    """When a process that is waited for is reported as stuck, and when it is given up."""
    early_stop: EarlyStop | None = None
    """End reinforcement learning before its last rollout once a target is reached; the job then has succeeded."""
    gang: GangSpec | None = None
    """Gang scheduling of an attempt's pods."""
    queue: QueueSpec | None = None
    """Admission by Kueue."""
