"""Matrix products whose rows do not depend on the batch around them.

A BLAS may choose another kernel, and so another order of summation, when the number of rows changes. Deterministic
mode needs each row's result to be a function of that row alone. What the library at hand guarantees is measured once
per engine (`choose_rows`): usually products of 32·k rows agree bit for bit in every row, and are used whole; else rows
are multiplied in tiles of one fixed size; at worst one by one.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch.nn import functional

UNIT = 32
"""Row counts are multiples of this, so that vectorised element-wise kernels (32 floats a turn) have no remainder."""


@dataclass(frozen=True, slots=True)
class Rows:
    """How products are cut. `tile` 0: not at all."""

    tile: int = 0

    def linear(self, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
        """x [rows, in] · weight [out, in]ᵀ + bias → [rows, out]."""
        if not self.tile or x.shape[0] <= self.tile:
            return functional.linear(x, weight, bias)
        return torch.cat([functional.linear(part, weight, bias) for part in torch.split(x, self.tile)])

    def linear_add(
        self, total: torch.Tensor, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None
    ) -> torch.Tensor:
        """total [rows, out] + x [rows, in] · weight [out, in]ᵀ (+ bias)."""
        if bias is not None:
            total = total + bias
        if not self.tile or x.shape[0] <= self.tile:
            return torch.addmm(total, x, weight.t())
        pairs = zip(torch.split(total, self.tile), torch.split(x, self.tile), strict=True)
        return torch.cat([torch.addmm(t, part, weight.t()) for t, part in pairs])


def row_counts(limit: int) -> list[int]:
    """The row counts that a deterministic engine uses, up to the first that holds `limit` rows: steps of ≤ 25 %."""
    counts: list[int] = []
    step, units = 1, 0
    while not counts or counts[-1] < limit:
        units += step
        counts.append(units * UNIT)
        if units >= 8 * step:
            step *= 2
    return counts


def choose_rows(weights: Sequence[torch.Tensor], counts: Sequence[int]) -> Rows:
    """Measure on these weight shapes, device and thread count which cut makes rows independent, the fastest first."""
    shapes = {tuple(weight.shape): weight for weight in weights}
    for rows, used in ((Rows(0), list(counts)), (Rows(UNIT), [UNIT])):
        if all(_independent(rows, weight, used) for weight in shapes.values()):
            return rows
    return Rows(1)


def _independent(rows: Rows, like: torch.Tensor, counts: Sequence[int]) -> bool:
    """Whether one row, repeated, gives one result at every place of every row count."""
    generator = torch.Generator().manual_seed(like.shape[0] * 1_000_003 + like.shape[1])
    weight = torch.randn(like.shape, generator=generator).to(like.device, like.dtype)
    bias, row = (torch.randn(1, n, generator=generator).to(like.device, like.dtype) for n in like.shape)
    expected: list[torch.Tensor] | None = None
    for count in counts:
        x, total = row.repeat(count, 1), bias.repeat(count, 1)
        results = [rows.linear(x, weight), rows.linear(x, weight, bias[0]), rows.linear_add(total, x, weight)]
        if expected is None:
            expected = [result[:1] for result in results]
        if not all(bool((result == first).all()) for result, first in zip(results, expected, strict=True)):
            return False
    return True
