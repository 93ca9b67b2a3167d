"""An advantage estimator and a policy loss: what one is given, and what it returns.

Built-in ones and a user's own (`spec.algorithm.customAdvantages`, `customPolicyLoss`) are alike: functions of the
inputs below and of keyword arguments. N is the number of trained tokens, in the order of samples; S that of samples.
"""

from dataclasses import dataclass
from typing import Any, Protocol

Tensor = Any
"""A `torch.Tensor`; this package imports no torch."""


@dataclass(frozen=True, slots=True)
class AdvantageInputs:
    """A scored rollout: all samples that can be trained on, in the driver, on CPU."""

    rewards: Tensor
    """[S] float64. With `kl.rewardCoef` β, β·Σ_t kl_t of the sample's tokens is taken off."""
    groups: Tensor
    """[S] int64: samples of one prompt have the same number."""
    sizes: Tensor
    """[S] int64: trained tokens of each sample."""
    token_rewards: Tensor
    """[N] float64: −β·kl_t, and the sample's reward on top at its last token. They add up to `rewards`."""
    values: Tensor | None = None
    """[N] float64: the critic's value of the state in which each token was drawn; None without a critic, which
    `advantageEstimator: gae` alone has."""


@dataclass(frozen=True, slots=True)
class Advantages:
    """What an estimator returns. A plain tensor stands for `advantages` alone."""

    advantages: Tensor
    """[S], of all trained tokens of a sample; or [N], of each."""
    returns: Tensor | None = None
    """[N]: what the critic learns. Required where there is one, and only there."""


class AdvantageEstimator(Protocol):
    """`def f(inputs, **args) -> Tensor | Advantages`, without random numbers that are not seeded by the data."""

    def __call__(self, inputs: AdvantageInputs, /, **args: Any) -> Advantages | Tensor: ...


@dataclass(frozen=True, slots=True)
class PolicyLossInputs:
    """A micro batch of whole samples, on a rank and its device; N and S are those of the micro batch."""

    logprobs: Tensor
    """[N] float32: log π of each token, with gradient."""
    old_logprobs: Tensor
    """[N] float32: log π_old, of the policy at the start of the rollout's training."""
    advantages: Tensor
    """[N] float32."""
    sample: Tensor
    """[N] int64 in [0, `num_samples`): the sample of each token."""
    num_samples: int
    """S."""
    rollout_logprobs: Tensor | None = None
    """[N] float32: the engine's log-probabilities; None when they are not kept (`rollout.returnLogprobs`)."""


@dataclass(frozen=True, slots=True)
class PolicyLossOutputs:
    """What a policy loss returns. A plain tensor stands for `loss` alone."""

    loss: Tensor
    """[N], with gradient: the loss of each token. `lossAggregation` makes the batch's loss of it."""
    clipped: Tensor | None = None
    """[N] bool: whether the token was clipped, for the metric `clipfrac`. None: none was."""
    ratio: Tensor | None = None
    """[N]: the importance ratio, for the metrics `ratio_mean` and `ratio_max`. None: π/π_old of each token."""


class PolicyLoss(Protocol):
    """`def f(inputs, **args) -> Tensor | PolicyLossOutputs`. A token's loss depends on its own sample alone: what
    micro batch a sample falls into is no part of the algorithm."""

    def __call__(self, inputs: PolicyLossInputs, /, **args: Any) -> PolicyLossOutputs | Tensor: ...
