"""Cutting a rank's share of a batch into forward passes."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Row:
    """One sequence: ids, and a mask that says which ids are trained (never the first: nothing predicts it)."""

    ids: Sequence[int]
    mask: Sequence[int]


@dataclass(frozen=True)
class MicroBatch:
    """A forward pass. Sequences are padded on the right, where causal attention never looks from a real token."""

    rows: list[int]
    """Which rows of the share, in the order of the tensors below."""
    input_ids: Tensor
    """[B, T] int64; T is the longest row less its last id, which predicts nothing."""
    positions: Tensor
    """[N] int64: places in the flattened [B·T] whose next token is trained, row by row."""
    targets: Tensor
    """[N] int64: those next tokens."""
    sample: Tensor
    """[N] int64 in [0, B): the row of each."""
    sample_tokens: Tensor
    """[B] int64: trained tokens of each row."""


def plan(lengths: Sequence[int], micro_batch_size: int, max_tokens: int | None = None) -> list[list[int]]:
    """Row numbers per forward pass: rows sorted by length, longest first, so that little is padding.

    Either `micro_batch_size` rows a pass, or, with `max_tokens`, as many as stay within that many tokens *with*
    padding (one row at least: a row that is longer goes alone). Every row appears once. Ties keep their order.
    """
    order = sorted(range(len(lengths)), key=lambda row: -lengths[row])
    if max_tokens is None:
        return [order[start : start + micro_batch_size] for start in range(0, len(order), micro_batch_size)]
    batches: list[list[int]] = []
    for row in order:
        if batches and lengths[batches[-1][0]] * (len(batches[-1]) + 1) <= max_tokens:
            batches[-1].append(row)
        else:
            batches.append([row])
    return batches


def collate(rows: Sequence[Row], numbers: list[int]) -> MicroBatch:
    """Tensors for the rows `numbers`. With no numbers: one forward pass over a single token that trains nothing,
    for a rank that must take part in the collectives of the others' passes."""
    chosen = [rows[number] for number in numbers]
    width = max([len(row.ids) - 1 for row in chosen] + [1])
    input_ids = torch.zeros(max(len(chosen), 1), width, dtype=torch.int64)
    positions: list[int] = []
    targets: list[int] = []
    sample: list[int] = []
    counts: list[int] = []
    for place, row in enumerate(chosen):
        if len(row.ids) > 1:
            input_ids[place, : len(row.ids) - 1] = torch.tensor(row.ids[:-1])
        trained = [at for at in range(1, len(row.ids)) if row.mask[at]]
        positions += [place * width + at - 1 for at in trained]
        targets += [row.ids[at] for at in trained]
        sample += [place] * len(trained)
        counts.append(len(trained))
    return MicroBatch(
        rows=numbers,
        input_ids=input_ids,
        positions=torch.tensor(positions, dtype=torch.int64),
        targets=torch.tensor(targets, dtype=torch.int64),
        sample=torch.tensor(sample, dtype=torch.int64),
        sample_tokens=torch.tensor(counts or [0], dtype=torch.int64),
    )
