"""Pure tensor functions: advantages, losses, KL, entropy, aggregation, importance sampling.

Shapes. Token-level functions take any one shape, elementwise. Functions that know of samples take the trained tokens
of all samples in one vector of N values (no padding) with `sample`, an int64 vector of N saying which sample each
token belongs to. So nothing can depend on padding, and sums over micro batches and ranks add up to the whole.
"""

from rljob_trainer.algorithms.advantages import (
    TokenAdvantages,
    discounted_sums,
    estimate_advantages,
    gae,
    grpo_advantages,
    rloo_advantages,
    token_rewards,
    whiten,
)
from rljob_trainer.algorithms.losses import (
    cispo_loss,
    clipped_value_loss,
    explained_variance,
    gspo_loss,
    loss_terms,
    ppo_clip_loss,
    token_weights,
)
from rljob_trainer.algorithms.regularization import kl_estimate, token_entropy
from rljob_trainer.algorithms.tis import TisResult, normalize_by_mean, tis_weights

__all__ = [
    "TisResult",
    "TokenAdvantages",
    "cispo_loss",
    "clipped_value_loss",
    "discounted_sums",
    "estimate_advantages",
    "explained_variance",
    "gae",
    "grpo_advantages",
    "gspo_loss",
    "kl_estimate",
    "loss_terms",
    "normalize_by_mean",
    "ppo_clip_loss",
    "rloo_advantages",
    "tis_weights",
    "token_entropy",
    "token_rewards",
    "token_weights",
    "whiten",
]
