"""Policy-gradient losses per token."""

import torch
from torch import Tensor


def ppo_clip_loss(
    logprobs: Tensor,
    old_logprobs: Tensor,
    advantages: Tensor,
    *,
    eps_clip: float,
    eps_clip_high: float | None = None,
    dual_clip: float | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """The clipped surrogate objective, per token.

    With ρ = exp(log π − log π_old):  L = −min(ρ·A, clip(ρ, 1 − ε, 1 + ε_high)·A) = max(−ρ·A, −clip(ρ, …)·A);
    with `dual_clip` c > 1, for A < 0 alone:  L = min(L, −c·A).

    logprobs, old_logprobs, advantages: one common shape. Gradients flow through `logprobs` alone. Returns the loss,
    whether the clipped branch was taken (bool), and ρ (detached), each of that shape.

    Sources: Schulman et al. 2017 (PPO, arXiv 1707.06347) eq. 7; clip-higher: Yu et al. 2025 (DAPO, arXiv 2503.14476);
    dual clip: Ye et al. 2020 (arXiv 1912.09729) eq. 5.
    """
    old_logprobs, advantages = old_logprobs.detach(), advantages.detach()
    ratio = torch.exp(logprobs - old_logprobs)
    high = eps_clip if eps_clip_high is None else eps_clip_high
    unclipped = -ratio * advantages
    clipped = -ratio.clamp(1.0 - eps_clip, 1.0 + high) * advantages
    loss = torch.maximum(unclipped, clipped)
    was_clipped = clipped > unclipped
    if dual_clip is not None:
        if dual_clip <= 1.0:
            raise ValueError(f"dual_clip must be above 1, is {dual_clip}")
        bound = -dual_clip * advantages
        lower = (advantages < 0) & (loss > bound)
        loss = torch.where(lower, bound, loss)
        was_clipped = was_clipped | lower
    return loss, was_clipped, ratio.detach()
