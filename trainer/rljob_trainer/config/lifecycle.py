"""`spec.lifecycle`: suspend, retries, deadlines and what to do when learning goes wrong."""

from pydantic import Field

from rljob_trainer.config.base import ApiModel, DnsName, NonNegativeInt, PositiveInt
from rljob_trainer.config.health import EarlyStop, HealthPolicies


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
    early_stop: EarlyStop | None = None
    """End reinforcement learning before its last rollout once a target is reached; the job then has succeeded."""
    queue: QueueSpec | None = None
    """Admission by Kueue."""
