"""Entropy of the next-token distribution."""

import torch
from torch import Tensor


def token_entropy(logits: Tensor) -> Tensor:
    """H = −Σ p log p = logsumexp(z) − Σ softmax(z)·z, in nats.

    logits: [..., V] float32, already divided by the temperature. Returns [...]. A logit of −inf (a token ruled out)
    contributes 0.
    """
    probabilities = torch.softmax(logits, dim=-1)
    weighted = torch.where(probabilities > 0, probabilities * logits, torch.zeros_like(logits))
    return torch.logsumexp(logits, dim=-1) - weighted.sum(dim=-1)
