"""Pure tensor functions: advantages, losses, KL, entropy, aggregation, importance sampling.

Shapes. Token-level functions take any one shape, elementwise. Functions that know of samples take the trained tokens
of all samples in one vector of N values (no padding) with `sample`, an int64 vector of N saying which sample each
token belongs to. So nothing can depend on padding, and sums over micro batches and ranks add up to the whole.
"""

from rljob_trainer.algorithms.advantages import grpo_advantages
from rljob_trainer.algorithms.aggregate import token_weights
from rljob_trainer.algorithms.entropy import token_entropy
from rljob_trainer.algorithms.kl import kl_estimate
from rljob_trainer.algorithms.policy_loss import ppo_clip_loss
from rljob_trainer.algorithms.tis import TisResult, normalize_by_mean, tis_weights

__all__ = [
    "TisResult",
    "grpo_advantages",
    "kl_estimate",
    "normalize_by_mean",
    "ppo_clip_loss",
    "tis_weights",
    "token_entropy",
    "token_weights",
]
