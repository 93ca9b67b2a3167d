"""Policy-gradient losses per token.

All return the loss, whether the clipped branch was taken (bool), and the ratio (detached), each of one shape.
Gradients flow through `logprobs` alone.
"""

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


def gspo_loss(
    logprobs: Tensor,
    old_logprobs: Tensor,
    advantages: Tensor,
    sample: Tensor,
    num_samples: int,
    *,
    eps_clip: float,
    eps_clip_high: float | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """The clipped objective with one ratio per sample: s = exp(mean_t (log π − log π_old)), over its trained tokens.

    L = max(−s·A, −clip(s, 1 − ε, 1 + ε_high)·A) for every token. The value of a token is s; its gradient is that of
    s·π/sg(π), so that advantages may differ within a sample and, where they do not, the sum over tokens has exactly the
    gradient of the paper's sequence objective. Sensible ranges are far narrower than PPO's (the paper: 3e-4, 4e-4).

    logprobs, old_logprobs, advantages: [N]. sample: [N] int64 in [0, num_samples), whole samples. Returns [N] each.

    Source: Zheng et al. 2025 (GSPO, arXiv 2507.18071) eq. 5–7; per token: eq. 13–14 (GSPO-token).
    """
    old_logprobs, advantages = old_logprobs.detach(), advantages.detach()
    difference = (logprobs - old_logprobs).detach()
    zeros = torch.zeros(num_samples, dtype=difference.dtype, device=difference.device)
    counts = zeros.index_add(0, sample, torch.ones_like(difference)).clamp(min=1.0)
    mean = zeros.index_add(0, sample, difference) / counts
    ratio = torch.exp(logprobs - logprobs.detach() + mean[sample])
    high = eps_clip if eps_clip_high is None else eps_clip_high
    unclipped = -ratio * advantages
    clipped = -ratio.clamp(1.0 - eps_clip, 1.0 + high) * advantages
    return torch.maximum(unclipped, clipped), clipped > unclipped, ratio.detach()


def cispo_loss(
    logprobs: Tensor,
    old_logprobs: Tensor,
    advantages: Tensor,
    *,
    eps_clip: float,
    eps_clip_high: float | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """REINFORCE with clipped importance weights: L = −sg(clip(ρ, 1 − ε, 1 + ε_high))·A·log π.

    No token's gradient vanishes: the ratio's weight is bounded, the token is not left out.

    Shapes as `ppo_clip_loss`.

    Source: MiniMax 2025 (MiniMax-M1, CISPO, arXiv 2506.13585) eq. 4–5.
    """
    ratio = torch.exp(logprobs - old_logprobs).detach()
    high = eps_clip if eps_clip_high is None else eps_clip_high
    weight = ratio.clamp(1.0 - eps_clip, 1.0 + high)
    return -weight * advantages.detach() * logprobs, weight != ratio, ratio
