"""Drawing tokens for many rows at once."""

import math
from dataclasses import dataclass

import numpy as np
import torch

LOG2_E = math.log2(math.e)


@dataclass(frozen=True, slots=True)
class RowSampling:
    """How n rows draw. None where no row asks for it."""

    greedy: torch.Tensor | None
    """[n] bool; None: none is."""
    all_greedy: bool
    divisor: torch.Tensor | None
    """[n, 1]: the temperature, 1 for greedy rows; None: 1 for all."""
    top_p: torch.Tensor | None
    """[n]"""
    top_k: torch.Tensor | None
    """[n]"""


def row_sampling(
    temperature: np.ndarray, top_p: np.ndarray, top_k: np.ndarray, device: torch.device | str = "cpu"
) -> RowSampling:
    """temperature (0 is greedy), top_p (1: all), top_k (−1: all), each [n]; the result is on `device`."""

    def tensor(array: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(array).to(device)

    greedy = temperature == 0
    divisor = np.where(greedy, temperature.dtype.type(1), temperature)
    return RowSampling(
        greedy=tensor(greedy) if greedy.any() else None,
        all_greedy=bool(greedy.all()),
        divisor=tensor(divisor)[:, None] if (divisor != 1).any() else None,
        top_p=tensor(top_p) if (top_p < 1).any() else None,
        top_k=tensor(top_k) if (top_k >= 0).any() else None,
    )


def draws(seed: int, length: int) -> np.ndarray:
    """The uniform draws of one sample for token positions 0 … length−1, float64.

    Philox is counter-based (Salmon et al. 2011): the draw at a position is a function of seed and position alone.
    """
    return np.random.Generator(np.random.Philox(key=seed & (2**128 - 1))).random(length)


def sample(logits: torch.Tensor, rows: RowSampling, uniform: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """logits [n, vocabulary] float32, uniform [n] float64 in [0, 1) → token ids and their log softmax(logits / T), [n].

    Inverse transform on the cumulative distribution in vocabulary order. Top-p keeps the smallest set of most probable
    tokens with at least that mass, top-k the k first, ties by token id.
    """
    logprobs = torch.log_softmax(logits if rows.divisor is None else logits / rows.divisor, -1)
    if rows.all_greedy:
        tokens = logits.argmax(-1)
    else:
        probabilities = (logprobs * LOG2_E).exp2_()  # see attention.attend
        if rows.top_p is not None or rows.top_k is not None:
            probabilities = _filtered(probabilities, rows)
        cumulative = probabilities.cumsum(-1, dtype=torch.float64)
        total = cumulative[:, -1:]
        # Rounding may lift a draw next to 1 up to the total, beyond every token: it stays below.
        target = torch.minimum(uniform[:, None] * total, total.nextafter(torch.zeros_like(total)))
        tokens = torch.searchsorted(cumulative, target, right=True)[:, 0]
        if rows.greedy is not None:
            tokens = torch.where(rows.greedy, logits.argmax(-1), tokens)
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
