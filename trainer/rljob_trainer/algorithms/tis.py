"""Importance sampling of the mismatch between the trainer's and the engine's probabilities (TIS, MIS).

A custom function (`algorithm.tis.function`) stands in for `tis_weights` and has this signature:

    def f(train_logprobs: Tensor, rollout_logprobs: Tensor, sample: Tensor, num_samples: int, **args)
        -> Tensor | tuple[Tensor, dict[str, float]]

with N values in each of the three vectors (all trained tokens of the rank's share of the batch, in order of samples)
and `num_samples` samples; it returns N weights, and metrics if it likes. The weights are detached.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

TisLevel = Literal["token", "sequence", "geometric"]
TisMode = Literal["truncate", "mask", "clip"]
LOG_RATIO_BOUND = 20.0


@dataclass(frozen=True)
class TisResult:
    """Weights per token and what goes with them. Sums, not means: they add up over micro batches and ranks."""

    weights: Tensor
    """[N] float32, detached. Zero where masked."""
    kept_sum: float
    """Sum of the weights of kept units (tokens, or samples for `sequence` and `geometric`)."""
    kept: int
    """Number of kept units."""
    stats: dict[str, float]
    """Sums over units: `units`, `ratio`, `above`, `below`, `vetoed` (samples), `samples`."""


def tis_weights(
    train_logprobs: Tensor,
    rollout_logprobs: Tensor,
    sample: Tensor,
    num_samples: int,
    *,
    level: TisLevel = "token",
    mode: TisMode = "truncate",
    upper_bound: float = 2.0,
    lower_bound: float = 0.0,
    veto_threshold: float | None = None,
) -> TisResult:
    """Weights that multiply the policy-gradient loss of each token.

    With d_t = log π_train(t) − log π_rollout(t), a unit's ratio is
      token:      ρ_t = exp(d_t)
      sequence:   ρ = exp(Σ_t d_t), for every token of the sample
      geometric:  ρ = exp(mean_t d_t), for every token of the sample
    (exponents clamped to [−20, 20]) and its weight
      truncate:   min(ρ, upper)
      clip:       min(max(ρ, lower), upper)
      mask:       ρ where lower ≤ ρ ≤ upper, else 0
    With `veto_threshold`, a sample with any token ratio exp(d_t) below it gets weight 0 throughout. Masked tokens
    stay in the denominators of the loss, so that no sample's weight depends on another's rejection.

    train_logprobs, rollout_logprobs: [N] float, the trained tokens. sample: [N] int64 in [0, num_samples).

    Sources: Yao et al. 2025, "Your Efficient RL Framework Secretly Brings You Off-Policy RL Training" (truncate,
    token); Liu, Li et al. 2025, "When Speed Kills Stability" (sequence, geometric, mask, veto).
    """
    if lower_bound > upper_bound:
        raise ValueError(f"lower_bound {lower_bound} is above upper_bound {upper_bound}")
    difference = (train_logprobs.detach() - rollout_logprobs.detach()).to(torch.float32)
    counts = torch.zeros(num_samples, dtype=torch.float32, device=difference.device)
    counts.index_add_(0, sample, torch.ones_like(difference))
    if level == "token":
        log_ratio, unit_of_token, present = difference, torch.arange(len(difference)), torch.ones_like(difference) > 0
    else:
        sums = torch.zeros(num_samples, dtype=torch.float32, device=difference.device).index_add_(0, sample, difference)
        log_ratio = sums if level == "sequence" else sums / counts.clamp(min=1.0)
        unit_of_token, present = sample, counts > 0
    ratio = log_ratio.clamp(-LOG_RATIO_BOUND, LOG_RATIO_BOUND).exp()
    above, below = (ratio > upper_bound) & present, (ratio < lower_bound) & present
    keep = present.clone()
    if mode == "truncate":
        weight = ratio.clamp(max=upper_bound)
        below = torch.zeros_like(below)
    elif mode == "clip":
        weight = ratio.clamp(lower_bound, upper_bound)
    elif mode == "mask":
        weight, keep = ratio, keep & ~above & ~below
    else:
        raise ValueError(f"unknown mode {mode!r}")
    vetoed = torch.zeros(num_samples, dtype=torch.bool, device=difference.device)
    if veto_threshold is not None and veto_threshold > 0:
        low = difference < torch.log(torch.tensor(veto_threshold, dtype=torch.float32))
        hits = torch.zeros(num_samples, device=difference.device).index_add_(0, sample, low.to(torch.float32))
        vetoed = hits > 0
        keep = keep & ~(vetoed[sample] if level == "token" else vetoed)
    weight = torch.where(keep, weight, torch.zeros_like(weight))
    return TisResult(
        weights=weight[unit_of_token.to(weight.device)],
        kept_sum=float(weight.double().sum()),
        kept=int(keep.sum()),
        stats={
            "units": float(present.sum()),
            "ratio": float(torch.where(present, ratio, torch.zeros_like(ratio)).double().sum()),
            "above": float(above.sum()),
            "below": float(below.sum()),
            "vetoed": float(vetoed.sum()),
            "samples": float((counts > 0).sum()),
        },
    )


def normalize_by_mean(weights: Tensor, total: float, count: float) -> Tensor:
    """`weights` divided by their mean over the kept units of the **global** batch: `total` / `count`.

    `total` and `count` are `kept_sum` and `kept` added up over all micro batches and ranks. With nothing kept, or a
    mean of 0, the weights stay as they are (all 0).
    """
    return weights * (count / total) if total > 0 and count > 0 else weights
