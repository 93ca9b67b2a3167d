"""What keeps the policy near the reference and wide: estimates of the KL divergence, and the entropy."""

from typing import Literal

import torch
from torch import Tensor

KlEstimator = Literal["k1", "k2", "k3", "low_var_kl"]
LOG_RATIO_BOUND = 20.0
KL_BOUND = 10.0


def kl_estimate(logprobs: Tensor, ref_logprobs: Tensor, estimator: KlEstimator, ratio: Tensor | None = None) -> Tensor:
    """Per-token estimate of KL(π ‖ π_ref) at tokens drawn from π.

    With d = log π − log π_ref:  k1 = d;  k2 = d²/2;  k3 = exp(−d) − 1 + d;  low_var_kl = k3 with d clamped to
    [−20, 20] before and the value to [−10, 10] after, as verl and slime have it, against overflow by one odd token
    (a clamped token gives no gradient).

    With `ratio` = π/π_old (gradient included) the estimate is multiplied by it: tokens are drawn from π_old, and
    E_old[ρ·k] is KL(π ‖ π_ref) with its true gradient also off policy; at ρ = 1 the value is unchanged but the gradient
    of k3 becomes that of the KL itself, −(log π_ref − log π)·∇log π, rather than (1 − π_ref/π)·∇log π.

    logprobs, ref_logprobs: one common shape; gradients flow through `logprobs` alone. Returns that shape.

    Sources: Schulman 2020, "Approximating KL Divergence" (joschu.net/blog/kl-approx.html); weighted: DeepSeek-AI 2025
    (DeepSeek-V3.2, arXiv 2512.02556) section 3.1.
    """
    if ratio is not None:
        return ratio * kl_estimate(logprobs, ref_logprobs, estimator)
    difference = logprobs - ref_logprobs.detach()
    if estimator == "k1":
        return difference
    if estimator == "k2":
        return 0.5 * difference.square()
    if estimator == "k3":
        return torch.exp(-difference) - 1.0 + difference
    if estimator == "low_var_kl":
        difference = difference.clamp(-LOG_RATIO_BOUND, LOG_RATIO_BOUND)
        return (torch.exp(-difference) - 1.0 + difference).clamp(-KL_BOUND, KL_BOUND)
    raise ValueError(f"unknown KL estimator {estimator!r}")


def token_entropy(logits: Tensor) -> Tensor:
    """H = −Σ p log p = logsumexp(z) − Σ softmax(z)·z, in nats.

    logits: [..., V] float32, already divided by the temperature. Returns [...]. A logit of −inf (a token ruled out)
    contributes 0.
    """
    probabilities = torch.softmax(logits, dim=-1)
    weighted = torch.where(probabilities > 0, probabilities * logits, torch.zeros_like(logits))
    return torch.logsumexp(logits, dim=-1) - weighted.sum(dim=-1)
