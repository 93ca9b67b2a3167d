"""Attention over keys and values in pages.

Each page is multiplied with its own sequence's queries, all pages in one batched product; the softmax of a sequence is
then put together from its pages, in their order. So a sequence's result is a function of its own pages alone, whatever
else is in the batch, and no work goes into padding. The decomposition is that of online softmax (Milakov & Gimelshein
2018) with the maximum taken first.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

LOG2_E = math.log2(math.e)


def page_size(max_length: int) -> int:
    """Tokens per page for sequences of up to `max_length`: depends on the configuration alone."""
    return 32 if max_length <= 1024 else 128 if max_length <= 8192 else 512


def value_width(head_dim: int) -> int:
    """Columns of a page of values: those of a head, one of ones, and zeros up to whole vectors of 16 floats.

    With a remainder, MKL on AMD processors gives a page other bits depending on its place among the others.
    """
    return -(-(head_dim + 1) // 16) * 16


@dataclass(frozen=True, slots=True)
class Pages:
    """Which pages n sequences read. Sequences are ordered by their number of pages, most first."""

    ids: NDArray[np.int64]
    """[P]: first pages of all sequences, then the second ones of those that have two, and so on."""
    owners: NDArray[np.int64]
    """[P]: sequence of each."""
    numbers: NDArray[np.int64]
    """[P]: the how-manieth page of its sequence it is."""
    counts: list[int]
    """Sequences with more than 0, 1, 2 … pages."""

    @classmethod
    def of(cls, table: NDArray[np.int64], used: NDArray[np.int64]) -> "Pages":
        """table [n, pages] of page ids, of which each sequence uses the first `used` [n], in descending order."""
        there = np.arange(used[0])[:, None] < used[None, :]
        numbers, owners = np.nonzero(there)
        return cls(table.T[: used[0]][there], owners, numbers, there.sum(1).tolist())


@dataclass(frozen=True, slots=True)
class Plan:
    """A `Pages` made ready for all layers."""

    owners: torch.Tensor
    """[P]: sequence of each page that is multiplied."""
    mask: torch.Tensor
    """[P·groups, m, page] additive, −inf behind a query's position."""
    order: torch.Tensor | None
    """[P]: where the pages of `Pages.ids` stand among those multiplied; None: in that order."""
    counts: list[int]


def mask_table(page: int, device: torch.device) -> torch.Tensor:
    """[page + 1, page]: row i shows the first i keys of a page (0) and hides the others (−inf)."""
    hidden = torch.arange(page)[None, :] >= torch.arange(page + 1)[:, None]
    return torch.zeros(page + 1, page).masked_fill_(hidden, float("-inf")).to(device)


def plan(
    pages: Pages, positions: torch.Tensor, groups: int, repeats: int, masks: torch.Tensor, pool: int | None
) -> Plan:
    """positions [n, c] of the queries, masks as `mask_table` makes them. `pool`: the first so many pages of the cache
    are multiplied as they lie, those that nobody reads included (their results are dropped); None: the pages of
    `pages.ids`, gathered."""
    device, page = positions.device, masks.shape[1]
    owners, numbers, order = pages.owners, pages.numbers, None
    if pool is not None:
        owners, numbers = np.zeros(pool, dtype=np.int64), np.zeros(pool, dtype=np.int64)
        owners[pages.ids], numbers[pages.ids] = pages.owners, pages.numbers
        order = torch.from_numpy(pages.ids).to(device)
    owner = torch.from_numpy(owners).to(device)
    first = torch.from_numpy(numbers * page).to(device)
    # Keys of the page that each query sees, 0 … page: a row of the table of all such masks.
    seen = (positions.index_select(0, owner) + 1 - first[:, None]).clamp_(0, page)
    p, c = seen.shape
    if groups * repeats > 1:
        seen = seen[:, None, None].expand(p, groups, repeats, c)
    mask = masks.index_select(0, seen.reshape(-1)).view(p * groups, repeats * c, page)
    return Plan(owner, mask, order, pages.counts)


def attend(q: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, plan: Plan, scale: float) -> torch.Tensor:
    """q [n, groups, m, d], keys [P, groups, d, page], values [P, groups, page, value_width(d)] whose column d is 1: it
    sums the weights along with the values. All float32. Returns [n, groups, m, d]."""
    n, groups, m, d = q.shape
    page, counts, width = plan.mask.shape[2], plan.counts, values.shape[3]
    queries = q.reshape(n, -1).index_select(0, plan.owners).view(-1, m, d)
    # Powers of 2: MKL's exp, which PyTorch calls on CPU, is a hundred times slower where the result underflows.
    scores = torch.baddbmm(plan.mask, queries, keys.view(-1, d, page), alpha=scale * LOG2_E)
    peak, *more = _by_sequence(scores.amax(-1).view(-1, groups * m), plan)
    for count, other in zip(counts[1:], more, strict=True):
        head = peak[:count]
        torch.maximum(head, other, out=head)
    scores.sub_(peak.index_select(0, plan.owners).view(-1, m, 1)).exp2_()
    parts = torch.bmm(scores, values.view(-1, page, width))
    total, *more = _by_sequence(parts.view(-1, groups * m * width), plan)
    for count, other in zip(counts[1:], more, strict=True):
        total[:count].add_(other)
    total = total.view(n, groups, m, width)
    return total[..., :d] / total[..., d : d + 1]


def _by_sequence(of_pages: torch.Tensor, plan: Plan) -> tuple[torch.Tensor, ...]:
    """Results of pages [P, …] as those of the first pages, the second ones, and so on."""
    if plan.order is not None:
        of_pages = of_pages.index_select(0, plan.order)
    return of_pages.split_with_sizes(plan.counts) if len(plan.counts) > 1 else (of_pages,)
