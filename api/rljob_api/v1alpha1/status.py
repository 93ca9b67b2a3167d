"""`status` of an RLJob: what the operator has seen."""

from typing import Annotated, Literal

from pydantic import Field

from rljob_api.v1alpha1.base import ApiModel, LongStr, NonNegativeInt, ShortStr
from rljob_api.v1alpha1.lifecycle import RetryableReason

Phase = Literal[
    "Pending",
    "Preparing",
    "Queued",
    "Starting",
    "Running",
    "Suspending",
    "Suspended",
    "Retrying",
    "Succeeded",
    "Failed",
]
FINISHED: tuple[Phase, ...] = ("Succeeded", "Failed")

AttemptReason = Literal[
    "Succeeded",
    "Suspended",
    "Paused",
    "RolledBack",
    "Unhealthy",
    "UserError",
    RetryableReason,
    "DeadlineExceeded",
]
"""Why an attempt ended, in one word; docs/operations.md says what each means and what follows from it."""


class Condition(ApiModel):
    """A condition as KEP-1623 has it."""

    type: ShortStr
    """Accepted, ResourcesApplied, RetrieverReady, Admitted, ClusterReady, Training, those of learning health,
    Suspended, Complete or Failed."""
    status: Literal["True", "False", "Unknown"]
    """Whether the condition holds."""
    reason: ShortStr
    """One CamelCase word."""
    message: Annotated[str, Field(max_length=32768)] = ""
    """For a person to read."""
    observed_generation: NonNegativeInt = 0
    """Generation of the spec that this speaks of."""
    last_transition_time: ShortStr
    """When `status` last changed (RFC 3339)."""


class AttemptStatus(ApiModel):
    """One attempt: one RayJob."""

    number: NonNegativeInt
    """Counts from 1."""
    ray_job: ShortStr
    """Name of its RayJob."""
    state: Literal["Starting", "Running", "Suspended", "Succeeded", "Failed"]
    """Where it stands."""
    start_time: ShortStr | None = None
    """When it was created (RFC 3339)."""
    admitted_time: ShortStr | None = None
    """When Kueue admitted it (RFC 3339); its time in the queue counts for no limit."""
    ray_cluster: ShortStr | None = None
    """Name of the RayCluster that it was admitted as; with a queue alone."""
    end_time: ShortStr | None = None
    """When it ended (RFC 3339)."""
    start_step: NonNegativeInt | None = None
    """Step it started from."""
    end_step: NonNegativeInt | None = None
    """Step it had reached when it ended."""
    committed_step: NonNegativeInt | None = None
    """Step of the last commit when it ended: the next attempt starts there, steps between the two are lost."""
    reason: AttemptReason | None = None
    """Why it ended, in one word."""
    exit_code: int | None = None
    """Exit code of the driver."""
    message: LongStr | None = None
    """Why it ended."""


class PauseStatus(ApiModel):
    """A pause by learning health; see docs/learning-health.md for how to end it."""

    attempt: NonNegativeInt
    """Attempt that was paused."""
    message: LongStr
    """Why."""
    time: ShortStr
    """Since when (RFC 3339)."""


class GroupStatus(ApiModel):
    """Pods of one group."""

    desired: NonNegativeInt = 0
    """Pods asked for."""
    ready: NonNegativeInt = 0
    """Pods ready."""


class CommitStatus(ApiModel):
    """The last durable commit."""

    name: ShortStr
    """Name of the commit, `<incarnation>/<commit>` beneath the job's directory."""
    step: NonNegativeInt
    """Optimizer steps it holds."""
    policy_version: NonNegativeInt = 0
    """Policy version it holds."""
    time: ShortStr | None = None
    """When it was written (RFC 3339)."""


class AutoscalingStatus(ApiModel):
    """What autoscaling makes of the rollout group."""

    replicas: NonNegativeInt
    """Engines that it wants now."""
    recommended: NonNegativeInt | None = None
    """Engines that the last reports call for, when that is another number."""
    since: ShortStr | None = None
    """Since when they do (RFC 3339)."""


class PreparationStatus(ApiModel):
    """Filling the claim: the preparation of the data and the retriever's index."""

    key: ShortStr
    """Of the content; another content is prepared anew."""
    state: Literal["Running", "Done"]
    """Where it stands."""
    stage: ShortStr = ""
    """What is being made."""
    percent: Annotated[int, Field(ge=0, le=100)] | None = None
    """How much of the stage is done."""
    amount: ShortStr | None = None
    """The same in bytes, such as `12.3 of 60.1 GiB`."""


class RLJobStatus(ApiModel):
    """What the operator has seen of the job."""

    observed_generation: NonNegativeInt = 0
    """Generation of the spec that this status speaks of."""
    phase: Phase = "Pending"
    """Summary of the conditions."""
    message: LongStr | None = None
    """Why the phase is what it is."""
    conditions: Annotated[list[Condition], Field(max_length=32)] = Field(default_factory=list)
    """Details of the phase."""
    attempt: NonNegativeInt = 0
    """Number of the current attempt."""
    failed_attempts: NonNegativeInt = 0
    """Attempts that failed and count; compared with backoffLimit. With `backoffReset: OnProgress` those since the last
    progress."""
    last_failure_step: NonNegativeInt = 0
    """Step of the last commit when an attempt last failed; a commit beyond it gives the retries back."""
    earlier_active_seconds: NonNegativeInt = 0
    """Seconds that attempts ran which are no longer listed; for activeDeadlineSeconds."""
    attempts: Annotated[list[AttemptStatus], Field(max_length=32)] = Field(default_factory=list)
    """The latest attempts."""
    stage: Literal["", "Prepare", "SFT", "RL", "Evaluate", "Generate", "Done"] = ""
    """What the driver is doing."""
    step: NonNegativeInt = 0
    """Optimizer steps trained, SFT included; sets evaluated or rollouts generated where nothing is trained."""
    total_steps: NonNegativeInt = 0
    """Steps asked for."""
    progress: ShortStr | None = None
    """`step/totalSteps`."""
    reward: ShortStr | None = None
    """Mean reward of the last rollout."""
    tokens_per_second: ShortStr | None = None
    """Generated tokens per second in the last rollout."""
    goodput: ShortStr | None = None
    """Share of GPU time spent generating and training in the last rollout."""
    evaluation: Annotated[dict[Annotated[str, Field(max_length=128)], ShortStr], Field(max_length=64)] = Field(
        default_factory=dict
    )
    """Last score by evaluation set and moment, such as `held-out/after_sft`."""
    policy_version: NonNegativeInt = 0
    """Version of the weights that the engines serve."""
    last_commit: CommitStatus | None = None
    """The commit that a retry or resume starts from."""
    paused: PauseStatus | None = None
    """Learning health has paused the job, which waits for its user."""
    last_progress_time: ShortStr | None = None
    """When the driver last reported (RFC 3339)."""
    preparation: PreparationStatus | None = None
    """Filling the claim before the retriever starts."""
    last_report_seen: ShortStr | None = None
    """When the operator saw that report, by its own clock (RFC 3339)."""
    retriever: GroupStatus = Field(default_factory=GroupStatus)
    """Retriever pods."""
    head: GroupStatus = Field(default_factory=GroupStatus)
    """Ray head."""
    trainer: GroupStatus = Field(default_factory=GroupStatus)
    """Trainer pods."""
    rollout: GroupStatus = Field(default_factory=GroupStatus)
    """Rollout pods."""
    autoscaling: AutoscalingStatus | None = None
    """What `rollout.autoscaling` has decided."""
    rollout_replicas: NonNegativeInt = 0
    """For the scale subresource."""
    rollout_selector: LongStr | None = None
    """For the scale subresource."""
    ray_job: ShortStr | None = None
    """Name of the current RayJob."""
    start_time: ShortStr | None = None
    """When the first attempt was created (RFC 3339)."""
    completion_time: ShortStr | None = None
    """When the job finished (RFC 3339)."""
