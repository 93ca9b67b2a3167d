"""`spec.reward`: the functions that score a sample."""

from typing import Annotated

from pydantic import Field

from rljob_api.catalogue.rewards import REWARDS
from rljob_api.v1alpha1.base import (
    ApiModel,
    FreeMap,
    ImportPath,
    PositiveFloat,
    PositiveInt,
    SecretKeyRef,
    ShortStr,
    Url,
    one_of,
)

RewardName = Annotated[str, one_of((*REWARDS, "remote", "custom"))]


class RewardFunction(ApiModel):
    """One scored aspect."""

    name: RewardName
    """`em`: exact match against the golden answers, with a format score (Search-R1). `math`: by math-verify (OpenR1).
    `deepscaler`, `dapo`: as slime scores mathematics. `format`, `tag_count`: tags. `length`: overlong penalty (DAPO).
    `remote`: a reward model. `custom`: see `function`. docs/rewards.md defines each."""
    weight: Annotated[float, Field(ge=-1000.0, le=1000.0)] = 1.0
    """Weight in the sum."""
    function: ImportPath | None = None
    """For `custom`: `def f(sample, **args) -> float | dict` (sync or async); see docs/hooks.md."""
    args: FreeMap = Field(default_factory=dict)
    """Keyword arguments, such as `formatScore: 0.2` for `em`."""
    url: Url | None = None
    """For `remote`: address of a reward model."""
    token: SecretKeyRef | None = None
    """For `remote`: bearer token."""
    label: ShortStr | None = None
    """Name in metrics and reports; by default `name`."""


class RewardSpec(ApiModel):
    """The reward is the weighted sum of its functions."""

    functions: Annotated[list[RewardFunction], Field(min_length=1, max_length=16)]
    """What is scored. Required for reinforcement learning."""
    timeout_seconds: PositiveFloat = 30.0
    """Time limit for scoring one sample; beyond it the sample gets `failureReward` and is counted."""
    failure_reward: Annotated[float, Field(ge=-1000.0, le=1000.0)] = 0.0
    """Reward of a sample whose function failed or timed out."""
    workers: PositiveInt = 1
    """Processes that score."""
