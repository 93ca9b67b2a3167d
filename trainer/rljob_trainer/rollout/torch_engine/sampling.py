"""Drawing tokens for many rows at once."""

from dataclasses import dataclass

import numpy as np
import torch


@dataclass(frozen=True, slots=True)
class RowSampling:
    """Sampling of n rows, each tensor [n]. None where no row asks for it."""

    temperature: torch.Tensor
    """0 is greedy."""
    uniform: torch.Tensor
    """float64 in [0, 1): the draw of each row."""
    top_p: torch.Tensor | None
    top_k: torch.Tensor | None
    all_greedy: bool


def draws(seed: int, length: int) -> np.ndarray:
    """The uniform draws of one sample for token positions 0 … length−1, float64.

    Philox is counter-based (Salmon et al. 2011): the draw at a position is a function of seed and position alone.
    """
    return np.random.Generator(np.random.Philox(key=seed & (2**128 - 1))).random(length)


def sample(logits: torch.Tensor, rows: RowSampling) -> tuple[torch.Tensor, torch.Tensor]:
    """logits [n, vocabulary] float32 → token ids [n] and their log softmax(logits / T) [n].

    Inverse transform on the cumulative distribution in vocabulary order. Top-p keeps the smallest set of most probable
    tokens with at least that mass, top-k the k first, ties by token id.
    """
    greedy = rows.temperature == 0
    if rows.all_greedy:
        logprobs = torch.log_softmax(logits, -1)
        tokens = logits.argmax(-1)
    else:
        logprobs = torch.log_softmax(logits / torch.where(greedy, 1.0, rows.temperature)[:, None], -1)
        probabilities = logprobs.exp()
        if rows.top_p is not None or rows.top_k is not None:
            probabilities = _filtered(probabilities, rows)
        cumulative = probabilities.cumsum(-1, dtype=torch.float64)
        total = cumulative[:, -1:]
        # Rounding may lift a draw next to 1 up to the total, beyond every token: it stays below.
        target = torch.minimum(rows.uniform[:, None] * total, total.nextafter(torch.zeros_like(total)))
        tokens = torch.searchsorted(cumulative, target, right=True)[:, 0]
        tokens = torch.where(greedy, logits.argmax(-1), tokens)
    return tokens, logprobs.gather(1, tokens[:, None])[:, 0]


def _filtered(probabilities: torch.Tensor, rows: RowSampling) -> torch.Tensor:
    ordered, order = probabilities.sort(stable=True, dim=-1, descending=True)
    keep = torch.ones_like(ordered, dtype=torch.bool)
    if rows.top_k is not None:
        rank = torch.arange(ordered.shape[1], device=ordered.device)
        keep &= (rows.top_k[:, None] < 0) | (rank < rows.top_k[:, None])
    if rows.top_p is not None:
        # In this order: top-p is taken of what top-k leaves, renormalised, as vLLM and SGLang do.
        left = (ordered * keep).double()
        before = left.cumsum(-1) - left
        keep &= (rows.top_p[:, None] >= 1) | (before < rows.top_p[:, None] * left.sum(-1, keepdim=True))
    return probabilities * torch.zeros_like(keep).scatter_(1, order, keep)
