"""`spec.algorithm`: advantages, policy loss, KL, entropy and the correction of the train/rollout mismatch."""

from typing import Literal

from pydantic import Field

from rljob_trainer.config.base import ApiModel, FreeMap, ImportPath, NonNegativeFloat, PositiveFloat


class KlSpec(ApiModel):
    """KL divergence between the policy and the reference model. Estimators: Schulman 2020, "Approximating KL"."""

    loss_coef: NonNegativeFloat = 0.0
    """Weight in the loss. 0 with a reference model: monitored, not added."""
    estimator: Literal["k1", "k2", "k3", "low_var_kl"] = "low_var_kl"
    """`low_var_kl` is k3 = exp(r) − r − 1 with r = log π_ref − log π, clamped to [−10, 10]."""
    reward_coef: NonNegativeFloat = 0.0
    """Weight of the penalty in the reward."""
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


class AlgorithmSpec(ApiModel):
    """What turns rewards into a gradient."""

    type: Literal["rl", "sft"] = "rl"
    """`sft`: supervised fine-tuning alone (`spec.sft` is then required, the sections of the rollout are unused)."""
    advantage_estimator: Literal["grpo", "rloo", "reinforce_plus_plus", "reinforce_plus_plus_baseline", "gae"] = "grpo"
    """GRPO: Shao et al. 2024, rewards centred on their group's mean."""
    normalize_by_std: bool = True
    """GRPO: divide by the group's standard deviation. Off: Dr. GRPO (Liu et al. 2025)."""
    policy_loss: Literal["ppo_clip", "gspo", "cispo"] = "ppo_clip"
    """Clipped surrogate objective (Schulman et al. 2017)."""
    eps_clip: PositiveFloat = 0.2
    """Lower clip range: ratios below 1 − epsClip are clipped."""
    eps_clip_high: PositiveFloat | None = None
    """Upper clip range (clip-higher, Yu et al. 2025); equal to `epsClip` by default."""
    dual_clip: PositiveFloat | None = None
    """Dual-clip bound for negative advantages (Ye et al. 2020); above 1."""
    loss_aggregation: Literal["per_sample", "per_token", "per_prompt", "constant"] = "per_sample"
    """`per_sample`: mean over a sample's tokens, then over samples. `per_token`: mean over all tokens of the batch."""
    kl: KlSpec = Field(default_factory=KlSpec)
    """KL against the reference model."""
    entropy_coef: NonNegativeFloat = 0.0
    """Weight of the entropy bonus."""
    tis: TisSpec = Field(default_factory=TisSpec)
    """Correction of the train/rollout mismatch."""
