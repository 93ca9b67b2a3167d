"""`spec.lifecycle.health` and `.earlyStop`: what happens when learning goes wrong, and when it is done."""

from typing import Annotated, Literal

from pydantic import Field

from rljob_api.v1alpha1.base import ApiModel, NonNegativeFloat, PositiveFloat, PositiveInt, ShortStr

HealthPolicy = Literal["Ignore", "Warn", "Pause", "Fail", "Rollback"]
HealthCondition = Literal["RewardStalled", "EntropyCollapsed", "MismatchHigh", "ResponseLengthExploding", "NonFinite"]
Window = Annotated[int, Field(ge=1, le=10_000)]


class HealthThresholds(ApiModel):
    """When a learning-health condition holds. A window counts rollouts; means are over the window."""

    reward_window: Window = 50
    """Rollouts in each of the two windows, side by side, whose mean rewards are compared."""
    reward_min_improvement: NonNegativeFloat = 0.001
    """The reward has stalled when the later window's mean is not above the earlier one's by at least this."""
    reward_ceiling: float | None = None
    """A mean reward of at least this is good enough never to count as stalled."""
    entropy_window: Window = 10
    """Rollouts over which the entropy is averaged."""
    entropy_min: NonNegativeFloat = 0.01
    """The entropy has collapsed when its mean, in nats per token, is below this."""
    mismatch_window: Window = 5
    """Rollouts over which the mismatch is averaged."""
    mismatch_max: PositiveFloat = 0.1
    """The mismatch is high when the mean absolute difference between the trainer's and the engine's log-probability
    of a token, in nats, is above this."""
    length_window: Window = 10
    """Rollouts in each of the two windows, side by side, whose mean response lengths are compared."""
    length_max_ratio: Annotated[float, Field(gt=1.0)] = 2.0
    """Lengths explode when the later window's mean is more than so many times the earlier one's."""
    length_min_tokens: PositiveInt = 64
    """Responses shorter than this on average never count as exploding."""
    max_replacements: PositiveInt = 3
    """With nonFinite Ignore or Warn: rollouts in a row that may be thrown away because their step was not finite."""


class HealthPolicies(ApiModel):
    """What happens when a learning-health condition turns true. `Ignore`: nothing. `Warn`: condition and Event.
    `Pause`: commit, release the pods, and wait for the user (`rljob resume`). `Fail`: the job fails and is not tried
    again. `Rollback`: go on from the last commit before the trouble, with other samples."""

    reward_stalled: HealthPolicy = "Ignore"
    """The reward has not risen for long."""
    entropy_collapsed: HealthPolicy = "Ignore"
    """The policy's entropy is near zero."""
    mismatch_high: HealthPolicy = "Ignore"
    """Trainer and rollout probabilities differ too much."""
    response_length_exploding: HealthPolicy = "Ignore"
    """Responses grow fast."""
    non_finite: HealthPolicy = "Fail"
    """A loss or gradient is NaN or infinite. The step is never applied: with Ignore and Warn another rollout takes its
    place (in supervised fine-tuning, whose batches are fixed, they act as Fail)."""
    max_rollbacks: PositiveInt = 3
    """Rollbacks after which the job fails instead."""
    thresholds: HealthThresholds = Field(default_factory=HealthThresholds)
    """When a condition holds."""

    def policy(self, condition: HealthCondition) -> HealthPolicy:
        """The policy for a condition."""
        fields: dict[str, HealthPolicy] = {
            "RewardStalled": self.reward_stalled,
            "EntropyCollapsed": self.entropy_collapsed,
            "MismatchHigh": self.mismatch_high,
            "ResponseLengthExploding": self.response_length_exploding,
            "NonFinite": self.non_finite,
        }
        return fields[condition]


class EarlyStop(ApiModel):
    """Reinforcement learning ends, well, once a number is as good as was hoped for. Give one of atLeast and atMost."""

    metric: ShortStr
    """`evaluation/<set>` (its score), `evaluation/<set>/<number>` such as `pass@4`, or a number of a rollout as in
    metrics.jsonl: `reward`, `em`, `reward/<function>`, `response_length`."""
    at_least: float | None = None
    """Stop when the number is this or more."""
    at_most: float | None = None
    """Stop when the number is this or less."""
    times: PositiveInt = 1
    """So many measurements in a row must be."""


class StallLimits(ApiModel):
    """When a rank, an engine or a reward function that is waited for is reported as stuck, and given up."""

    silent_seconds: PositiveInt = 30
    """Without a sign of life for so long, a process is named in the condition Stalled, and its stack is kept."""
    still_seconds: PositiveInt = 90
    """The same for a process that lives but has not moved for so long (a rank in one line of code, an engine without a
    new token)."""
    give_up_seconds: PositiveInt = 90
    """Without a sign of life for so long, a rank is lost: the attempt fails and the next one goes on from the last
    commit. (An engine is replaced.)"""
