"""`spec.lifecycle`: suspend, retries, deadlines and what to do when learning goes wrong."""

from typing import Literal

from pydantic import Field

from rljob_trainer.config.base import ApiModel, DnsName, NonNegativeInt, PositiveInt

HealthPolicy = Literal["Ignore", "Warn", "Pause", "Fail", "Rollback"]


class HealthPolicies(ApiModel):
    """What happens when a learning-health condition turns true."""

    reward_stalled: HealthPolicy = "Ignore"
    """The reward has not risen for long."""
    entropy_collapsed: HealthPolicy = "Ignore"
    """The policy's entropy is near zero."""
    mismatch_high: HealthPolicy = "Ignore"
    """Trainer and rollout probabilities differ too much."""
    non_finite: Literal["Fail", "Rollback"] = "Fail"
    """A loss or gradient is NaN or infinite. The step is never applied."""


class QueueSpec(ApiModel):
    """Admission by Kueue."""

    name: DnsName
    """LocalQueue of the namespace."""
    priority_class: DnsName | None = None
    """WorkloadPriorityClass."""


class LifecycleSpec(ApiModel):
    """How the job starts, stops, retries and ends."""

    suspend: bool = False
    """Commit and release all pods; set to false to resume from that commit."""
    suspend_timeout_seconds: PositiveInt = 120
    """How long a suspend waits for the commit."""
    backoff_limit: NonNegativeInt = 3
    """Failed attempts after which the job fails. Each retry resumes from the last commit."""
    active_deadline_seconds: PositiveInt | None = None
    """The job fails when it is active for longer."""
    ttl_seconds_after_finished: NonNegativeInt | None = None
    """A finished RLJob (and its claim) is deleted after this time; kept by default."""
    termination_grace_period_seconds: PositiveInt = 60
    """Time between SIGTERM and SIGKILL for head and ranks."""
    health: HealthPolicies = Field(default_factory=HealthPolicies)
    """Policies for learning health."""
    queue: QueueSpec | None = None
    """Admission by Kueue."""
