"""`spec.algorithm`: advantages, policy loss, KL, entropy and the correction of the train/rollout mismatch."""

from typing import Annotated, Literal

from pydantic import Field

from rljob_api.catalogue.estimators import ESTIMATORS
from rljob_api.catalogue.losses import LOSSES
from rljob_api.v1alpha1.base import (
    ApiModel,
    Fraction,
    FreeMap,
    ImportPath,
    NonNegativeFloat,
    PositiveFloat,
    Since,
    one_of,
)
from rljob_api.v1alpha1.optimizer import OptimizerSpec


class KlSpec(ApiModel):
    """KL divergence between the policy and the reference model. Estimators: Schulman 2020, "Approximating KL"."""

    loss_coef: NonNegativeFloat = 0.0
    """Weight in the loss. 0 with a reference model: monitored, not added."""
    estimator: Literal["k1", "k2", "k3", "low_var_kl"] = "low_var_kl"
    """`low_var_kl` is k3 = exp(r) − r − 1 with r = log π_ref − log π, clamped to [−10, 10]."""
    unbiased: bool = False
    """Weigh the estimate in the loss by π/π_old, so that its gradient is that of the KL itself (DeepSeek-V3.2)."""
    reward_coef: NonNegativeFloat = 0.0
    """Weight of the penalty in the reward, taken off at each token before advantages are computed."""
    monitor: bool = True
    """Compute the KL against the reference even when its weight is 0."""


class TisSpec(ApiModel):
    """Importance sampling of the mismatch between trainer and rollout probabilities (TIS, MIS)."""

    enabled: bool = False
    """Weigh the loss by π_train / π_rollout. Needs `rollout.returnLogprobs`."""
    level: Literal["token", "sequence", "geometric"] = "token"
    """What a ratio is taken of: each token, the product over the sequence, or its geometric mean."""
    mode: Literal["truncate", "mask", "clip"] = "truncate"
    """Above the upper bound: truncate to it, mask the token or sequence, or clip into both bounds."""
    upper_bound: PositiveFloat = 2.0
    """Upper bound of a ratio."""
    lower_bound: NonNegativeFloat = 0.0
    """Lower bound of a ratio, for `mask` and `clip`."""
    veto_threshold: NonNegativeFloat | None = None
    """A sequence with any token ratio below this is masked whole."""
    batch_normalize: bool = False
    """Divide the weights by their mean over the batch."""
    function: ImportPath | None = None
    """Custom function in place of the above."""
    args: FreeMap = Field(default_factory=dict)
    """Keyword arguments of the custom function."""


class CriticOptimizerSpec(OptimizerSpec):
    """Optimizer of the critic."""

    lr: PositiveFloat = 1e-5
    """Peak learning rate."""


class CriticSpec(ApiModel):
    """The value model of `gae` (PPO): the policy's architecture and first weights, with a head that says one number."""

    value_clip: NonNegativeFloat = 0.2
    """How far a value may move from what it was at the rollout; 0 turns clipping off."""
    optimizer: CriticOptimizerSpec = Field(default_factory=CriticOptimizerSpec)
    """Optimizer of the critic."""


class CustomFunction(ApiModel):
    """A function of your own, from `spec.code` or the image."""

    function: ImportPath
    """Import path of `def f(inputs, **args)`; docs/hooks.md has its inputs and what it returns."""
    args: FreeMap = Field(default_factory=dict)
    """Keyword arguments of the function."""


class AlgorithmSpec(ApiModel):
    """What turns rewards into a gradient."""

    type: Literal["rl", "sft"] = "rl"
    """`sft`: supervised fine-tuning alone (`spec.sft` is then required, the sections of the rollout are unused)."""
    advantage_estimator: Annotated[str, one_of(ESTIMATORS)] = "grpo"
    """`grpo`: rewards centred on their group's mean (Shao et al. 2024). `rloo`: on the mean of the others of the group
    (Ahmadian et al. 2024). `reinforce_plus_plus`, `…_baseline`: whitened over the batch (Hu 2025). `gae`: with a critic
    (Schulman et al. 2016)."""
    normalize_by_std: bool = True
    """GRPO: divide by the group's standard deviation. Off: Dr. GRPO (Liu et al. 2025)."""
    gamma: Fraction = 1.0
    """Discount per token, for `gae` and `reinforce_plus_plus`."""
    gae_lambda: Fraction = 1.0
    """λ of `gae`: 1 trusts the rewards alone, 0 the critic."""
    critic: CriticSpec = Field(default_factory=CriticSpec)
    """The value model of `gae`."""
    policy_loss: Annotated[str, one_of(LOSSES)] = "ppo_clip"
    """`ppo_clip`: clipped surrogate objective (Schulman et al. 2017). `gspo`: with one ratio per sample (Zheng et al.
    2025). `cispo`: clipped weights, no token left out (MiniMax-M1, 2025)."""
    eps_clip: PositiveFloat = 0.2
    """Lower clip range: ratios below 1 − epsClip are clipped."""
    eps_clip_high: PositiveFloat | None = None
    """Upper clip range (clip-higher, Yu et al. 2025); equal to `epsClip` by default."""
    dual_clip: PositiveFloat | None = None
    """Dual-clip bound for negative advantages (Ye et al. 2020); above 1."""
    loss_aggregation: Literal["per_sample", "per_token", "per_prompt", "constant"] = "per_sample"
    """`per_sample`: mean over a sample's tokens, then over samples. `per_token`: mean over all tokens of the batch.
    `per_prompt`: mean over the tokens of a prompt's samples, then over prompts. `constant`: sum over a sample's tokens
    by `rollout.sampling.maxResponseLength`, then mean over samples (Dr. GRPO)."""
    kl: KlSpec = Field(default_factory=KlSpec)
    """KL against the reference model."""
    entropy_coef: NonNegativeFloat = 0.0
    """Weight of the entropy bonus."""
    tis: TisSpec = Field(default_factory=TisSpec)
    """Correction of the train/rollout mismatch."""
    custom_advantages: Annotated[CustomFunction | None, Since("1.1")] = None
    """An advantage estimator of your own, in place of the one that `advantageEstimator` names; with `gae`, there is a
    critic for it."""
    custom_policy_loss: Annotated[CustomFunction | None, Since("1.1")] = None
    """A policy loss of your own, in place of `policyLoss`, `epsClip`, `epsClipHigh` and `dualClip`."""
