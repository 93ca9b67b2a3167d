"""Cutting a rank's share of a batch into forward passes.

Two layouts. Padded: a row each, padded on the right, where causal attention never looks from a real token. Packed: all
documents one after another in a single row, with position ids that begin anew and attention that stays within a
document; nothing is padding. Both give the same losses.
"""

from bisect import bisect_left, insort
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise

import torch
from torch import Tensor


@dataclass(frozen=True)
class Row:
    """One sequence, or several packed one after another: ids, and a mask that says which ids are trained (never the
    first of a document: nothing predicts it)."""

    ids: Sequence[int]
    mask: Sequence[int]
    lengths: Sequence[int] | None = None
    """Lengths of the packed documents, which add up to that of `ids`; None: one document."""

    def documents(self) -> list[tuple[int, int]]:
        """Where each document begins and ends. Raises ValueError when the lengths do not fit the ids."""
        lengths = [len(self.ids)] if self.lengths is None else self.lengths
        bounds = list(accumulate(lengths, initial=0))
        if bounds[-1] != len(self.ids) or min(lengths, default=0) < 0:
            raise ValueError(f"a row of {len(self.ids)} ids is said to hold documents of {list(lengths)}")
        return list(pairwise(bounds))

    def trained(self) -> Tensor:
        """[N] int64: places in `ids` that are trained, in order."""
        mask = torch.tensor(self.mask, dtype=torch.bool)
        mask[[start for start, stop in self.documents() if start < stop]] = False
        return mask.nonzero().flatten()


@dataclass(frozen=True)
class Packing:
    """Bounds of the documents of a packed forward pass."""

    position_ids: Tensor
    """[1, T] int64: 0, 1, … anew for each document."""
    bounds: Tensor
    """[documents + 1] int32: where each begins, and T."""
    longest: int
    """Length of the longest document."""

    def to(self, device: torch.device) -> "Packing":
        """See `MicroBatch.to`."""
        return Packing(_moved(self.position_ids, device), _moved(self.bounds, device), self.longest)


@dataclass(frozen=True)
class MicroBatch:
    """A forward pass over a rank's rows."""

    rows: list[int]
    """Which rows of the share, in the order of the tensors below."""
    input_ids: Tensor
    """Padded: [B, T] int64, T the longest row less its last id, which predicts nothing. Packed: [1, T], T the sum."""
    positions: Tensor
    """[N] int64: places in the flattened `input_ids` whose next token is trained, row by row."""
    targets: Tensor
    """[N] int64: those next tokens."""
    sample: Tensor
    """[N] int64 in [0, B): the row of each."""
    sample_tokens: Tensor
    """[B] int64: trained tokens of each row."""
    packing: Packing | None = None
    """Bounds of the documents; None when padded."""

    def to(self, device: torch.device) -> "MicroBatch":
        """The same on `device`. Copies to a GPU come from pinned memory: others would wait until all that was submitted
        before them is computed, and the GPU then for the next pass to be put together."""
        return MicroBatch(
            rows=self.rows,
            input_ids=_moved(self.input_ids, device),
            positions=_moved(self.positions, device),
            targets=_moved(self.targets, device),
            sample=_moved(self.sample, device),
            sample_tokens=_moved(self.sample_tokens, device),
            packing=None if self.packing is None else self.packing.to(device),
        )

    def put(self, per_row: list[list[float]], values: Tensor) -> None:
        """Put the values of a pass, [N] for its trained tokens, where their rows are."""
        for row, part in zip(self.rows, torch.split(values.cpu(), self.sample_tokens.tolist()), strict=False):
            per_row[row] = part.tolist()


def plan(
    lengths: Sequence[int], micro_batch_size: int, max_tokens: int | None = None, *, packed: bool = False
) -> list[list[int]]:
    """Row numbers per forward pass: rows sorted by length, longest first, so that little is padding.

    Either `micro_batch_size` rows a pass, or, with `max_tokens`, as many as stay within that many tokens, padding
    counted unless `packed` (one row at least: a row that is longer goes alone). Packed rows go where they fit
    tightest (best fit, decreasing). Every row appears once. Ties keep their order.
    """
    order = sorted(range(len(lengths)), key=lambda row: -lengths[row])
    if max_tokens is None:
        return [order[start : start + micro_batch_size] for start in range(0, len(order), micro_batch_size)]
    batches: list[list[int]] = []
    if packed:
        room: list[tuple[int, int]] = []  # (tokens left, batch), sorted
        for row in order:
            at = bisect_left(room, (lengths[row], -1))
            left, number = room.pop(at) if at < len(room) else (max_tokens, len(batches))
            if number == len(batches):
                batches.append([])
            batches[number].append(row)
            insort(room, (left - lengths[row], number))
        return batches
    for row in order:
        if batches and lengths[batches[-1][0]] * (len(batches[-1]) + 1) <= max_tokens:
            batches[-1].append(row)
        else:
            batches.append([row])
    return batches


def collate(rows: Sequence[Row], numbers: list[int], *, packed: bool = False) -> MicroBatch:
    """Tensors for the rows `numbers`, padded or packed. With no numbers: one forward pass over a single token that
    trains nothing, for a rank that must take part in the collectives of the others' passes.

    Rows that hold several documents can only be packed.
    """
    chosen = [rows[number] for number in numbers]
    trained = [row.trained() for row in chosen]
    packing = None
    if packed:
        input_ids, positions, packing = _concatenate(chosen, trained)
    else:
        input_ids, positions = _pad(chosen, trained)
    counts = torch.tensor([len(places) for places in trained] or [0])
    nothing = torch.zeros(0, dtype=torch.int64)
    return MicroBatch(
        rows=numbers,
        input_ids=input_ids,
        positions=torch.cat([nothing, *positions]),
        targets=torch.cat([nothing, *(_tensor(row.ids)[at] for row, at in zip(chosen, trained, strict=True))]),
        sample=torch.repeat_interleave(torch.arange(len(counts)), counts),
        sample_tokens=counts,
        packing=packing,
    )


def _moved(tensor: Tensor, device: torch.device) -> Tensor:
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)


def _tensor(ids: Sequence[int]) -> Tensor:
    return torch.tensor(ids, dtype=torch.int64)


def _pad(rows: list[Row], trained: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
    width = max([len(row.ids) - 1 for row in rows] + [1])
    input_ids = torch.zeros(max(len(rows), 1), width, dtype=torch.int64)
    for number, row in enumerate(rows):
        if row.lengths is not None and len(row.lengths) > 1:
            raise ValueError("a row of several documents cannot be padded: they would see one another")
        if len(row.ids) > 1:
            input_ids[number, : len(row.ids) - 1] = _tensor(row.ids[:-1])
    return input_ids, [number * width + places - 1 for number, places in enumerate(trained)]


def _concatenate(rows: list[Row], trained: list[Tensor]) -> tuple[Tensor, list[Tensor], Packing]:
    """Every document less its last id, which predicts nothing."""
    ids: list[Tensor] = []
    positions: list[Tensor] = []
    lengths: list[int] = []
    total = 0
    for row, places in zip(rows, trained, strict=True):
        documents = [(start, stop) for start, stop in row.documents() if start < stop]
        keep = torch.ones(len(row.ids), dtype=torch.bool)
        keep[[stop - 1 for _, stop in documents]] = False
        # How many kept ids come before each place: the one that predicts it is the last of them.
        before = torch.cumsum(keep, 0) - keep.long()
        positions.append(total + before[places] - 1)
        ids.append(_tensor(row.ids)[keep])
        lengths += [stop - start - 1 for start, stop in documents if stop - start > 1]
        total += len(ids[-1])
    if not total:
        ids, lengths = [torch.zeros(1, dtype=torch.int64)], [1]
    packing = Packing(
        position_ids=torch.cat([torch.arange(length) for length in lengths]).unsqueeze(0),
        bounds=torch.tensor([0, *accumulate(lengths)], dtype=torch.int32),
        longest=max(lengths),
    )
    return torch.cat(ids).unsqueeze(0), positions, packing
