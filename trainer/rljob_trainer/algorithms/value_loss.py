"""What the critic of PPO learns from."""

import torch
from torch import Tensor


def clipped_value_loss(
    values: Tensor, old_values: Tensor, returns: Tensor, *, clip: float | None
) -> tuple[Tensor, Tensor]:
    """½·max((V − G)², (V_clip − G)²) per token, with V_clip = V_old + clamp(V − V_old, −ε, ε); ½·(V − G)² without ε.

    values, old_values, returns: one common shape; gradients flow through `values` alone. Returns the loss and whether
    the clipped branch was taken (bool), each of that shape.

    Source: OpenAI baselines' ppo2; Huang et al. 2022, "The 37 Implementation Details of PPO", detail 9.
    """
    returns, old_values = returns.detach(), old_values.detach()
    plain = (values - returns).square()
    if clip is None:
        return 0.5 * plain, torch.zeros_like(plain, dtype=torch.bool)
    clipped = (old_values + (values - old_values).clamp(-clip, clip) - returns).square()
    return 0.5 * torch.maximum(plain, clipped), clipped > plain


def explained_variance(residual_squares: float, returns: float, return_squares: float, count: float) -> float:
    """1 − Σ(G − V)² / Σ(G − mean G)², from sums over the batch; 0 when the returns do not vary."""
    spread = return_squares - returns**2 / max(count, 1.0)
    return 1.0 - residual_squares / spread if spread > 1e-12 else 0.0
