"""`spec.optimizer`: AdamW and the learning-rate schedule."""

from typing import Literal

from pydantic import Field

from rljob_api.v1alpha1.base import ApiModel, Fraction, NonNegativeFloat, NonNegativeInt, PositiveFloat


class LrSchedule(ApiModel):
    """Learning rate over optimizer steps."""

    type: Literal["constant", "linear", "cosine", "cosine_with_min_lr"] = "constant"
    """Shape after warm-up; `cosine_with_min_lr` ends at `minLrRate` × lr."""
    warmup_steps: NonNegativeInt = 0
    """Steps of linear warm-up from 0."""
    warmup_ratio: Fraction = 0.0
    """Warm-up as a share of all steps; used when `warmupSteps` is 0."""
    min_lr_rate: Fraction = 0.0
    """Final learning rate as a share of lr, for `cosine_with_min_lr` and `linear`."""


class OptimizerSpec(ApiModel):
    """AdamW (Loshchilov & Hutter 2019) with decoupled weight decay and clipping by global norm."""

    type: Literal["adamw"] = "adamw"
    """Optimizer."""
    lr: PositiveFloat = 1e-6
    """Peak learning rate."""
    beta1: Fraction = 0.9
    """Decay of the first moment."""
    beta2: Fraction = 0.98
    """Decay of the second moment."""
    eps: PositiveFloat = 1e-8
    """Added to the denominator."""
    weight_decay: NonNegativeFloat = 0.1
    """Decoupled weight decay."""
    clip_grad: NonNegativeFloat = 1.0
    """Largest global gradient norm; 0 turns clipping off."""
    schedule: LrSchedule = Field(default_factory=LrSchedule)
    """Learning rate over steps."""
    offload: bool = False
    """Keep optimizer states in host memory."""
