"""Rewards, returns and advantages per token.

Layout: N values, the trained tokens of all samples in order, with `sizes`, [S] int64, saying how many each sample has
(0 is allowed). Observations are not in it: what a tool wrote is no action, so credit passes over it.
"""

import torch
from torch import Tensor

VARIANCE_EPSILON = 1e-8


def token_rewards(rewards: Tensor, sizes: Tensor, kl: Tensor | None = None, kl_coef: float = 0.0) -> Tensor:
    """r_t = −β·kl_t, and the sample's reward on top at its last token.

    rewards: [S]. sizes: [S]. kl: [N] per-token estimates of KL(π ‖ π_ref), `kl_coef` β. Returns [N] float64. The reward
    of a sample without trained tokens has nowhere to go.

    Source: Ouyang et al. 2022 (InstructGPT, arXiv 2203.02155) eq. 2, per token.
    """
    count = int(sizes.sum())
    result = torch.zeros(count, dtype=torch.float64) if kl is None else -kl_coef * kl.to(torch.float64)
    if len(result) != count:
        raise ValueError(f"{len(result)} KL values for {count} tokens")
    last = sizes.cumsum(0)[sizes > 0] - 1
    result[last] += rewards.to(torch.float64)[sizes > 0]
    return result


def discounted_sums(values: Tensor, sizes: Tensor, factor: float) -> Tensor:
    """x_t = v_t + factor·x_{t+1} within each sample. values: [N]. Returns [N]."""
    mask = torch.arange(int(sizes.max()) if len(sizes) else 0) < sizes[:, None]
    table = torch.zeros(mask.shape, dtype=values.dtype)
    table[mask] = values
    for column in range(table.shape[1] - 2, -1, -1):
        table[:, column] += factor * table[:, column + 1]  # nothing but zeros lies beyond a sample's end
    return table[mask]


def whiten(values: Tensor) -> Tensor:
    """(v − mean) / √(var + 1e-8) with the sample variance (n − 1), over all of the batch. values: [N] float64.

    All 0 when there are fewer than two values or they are all equal.
    """
    if len(values) < 2 or bool((values == values[0]).all()):
        return torch.zeros_like(values)
    return (values - values.mean()) * torch.rsqrt(values.var(correction=1) + VARIANCE_EPSILON)


def gae(rewards: Tensor, values: Tensor, sizes: Tensor, *, gamma: float, lam: float) -> tuple[Tensor, Tensor]:
    """Generalised advantage estimation within each sample.

    δ_t = r_t + γ·V_{t+1} − V_t with V = 0 after the last token;  A_t = δ_t + γλ·A_{t+1};  return_t = A_t + V_t.

    rewards: [N] (`token_rewards`). values: [N], the critic's value of the state in which each token was drawn. Returns
    advantages (not yet whitened) and returns, [N] float64 each.

    Source: Schulman et al. 2016 (arXiv 1506.02438) eq. 11 and 16.
    """
    values = values.to(torch.float64)
    following = torch.zeros_like(values)
    following[:-1] = values[1:]
    following[sizes.cumsum(0)[sizes > 0] - 1] = 0.0
    advantages = discounted_sums(rewards + gamma * following - values, sizes, gamma * lam)
    return advantages, advantages + values
