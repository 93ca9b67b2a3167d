"""From rewards to the advantage of every token, by the name of the estimator."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from rljob_trainer.algorithms.advantages import grpo_advantages, rloo_advantages
from rljob_trainer.algorithms.returns import discounted_sums, gae, token_rewards, whiten

Estimator = Literal["grpo", "rloo", "reinforce_plus_plus", "reinforce_plus_plus_baseline", "gae"]


@dataclass(frozen=True)
class TokenAdvantages:
    """[N] float32 each, in the order of samples and tokens."""

    advantages: Tensor
    returns: Tensor | None = None
    """What the critic learns, with `gae`."""


def estimate_advantages(
    estimator: Estimator,
    rewards: Tensor,
    groups: Tensor,
    sizes: Tensor,
    *,
    normalize_by_std: bool = True,
    gamma: float = 1.0,
    lam: float = 1.0,
    kl: Tensor | None = None,
    kl_coef: float = 0.0,
    values: Tensor | None = None,
) -> TokenAdvantages:
    """Advantages of the trained tokens of a whole rollout.

    With R the reward, r_t the reward per token (`token_rewards`: R at the last token, −β·kl_t at each) and S = Σ r_t:
      grpo:                         of S within the group, the same for all tokens (`grpo_advantages`)
      rloo:                         of S within the group, leaving one out (`rloo_advantages`)
      reinforce_plus_plus:          Σ_{s ≥ t} γ^(s−t)·r_s, whitened over all tokens of the batch
      reinforce_plus_plus_baseline: S − mean(S of the group), whitened over all tokens of the batch
      gae:                          `gae` of r_t and the critic's `values`, whitened over all tokens of the batch
    A group of one has nothing to be compared with: 0 from the three that compare, before whitening.

    rewards: [S]. groups: [S] int. sizes: [S] int64, trained tokens. kl, values: [N]. A rollout is whitened whole, so
    nothing depends on how it is then shared out to optimizer steps and ranks.

    Sources: `advantages` and `returns`; REINFORCE++: Hu 2025 (arXiv 2501.03262).
    """
    per_token = token_rewards(rewards, sizes, kl, kl_coef)
    if estimator == "gae":
        if values is None:
            raise ValueError("gae needs the critic's values")
        advantages, returns = gae(per_token, values, sizes, gamma=gamma, lam=lam)
        return TokenAdvantages(whiten(advantages).float(), returns.float())
    if estimator == "reinforce_plus_plus":
        return TokenAdvantages(whiten(discounted_sums(per_token, sizes, gamma)).float())
    sample = torch.repeat_interleave(torch.arange(len(sizes)), sizes)
    scores = rewards.to(torch.float64)
    if kl is not None:
        scores = scores.index_add(0, sample, -kl_coef * kl.to(torch.float64))
    if estimator == "rloo":
        return TokenAdvantages(rloo_advantages(scores, groups)[sample])
    centred = grpo_advantages(scores, groups, normalize_by_std=normalize_by_std and estimator == "grpo")
    if estimator == "grpo":
        return TokenAdvantages(centred[sample])
    if estimator == "reinforce_plus_plus_baseline":
        return TokenAdvantages(whiten(centred.double()[sample]).float())
    raise ValueError(f"unknown estimator {estimator!r}")
