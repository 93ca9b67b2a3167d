"""Packing: the rows of a forward pass one after the other, without padding between them, attention kept within each."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from rljob_trainer.training.megatron.zigzag import Attend, attend, local_tokens
from rljob_trainer.training.microbatch import MicroBatch, Row

ALIGN = 64
"""Packs are a multiple of this many tokens long, for the matrix kernels' sake."""


@dataclass(frozen=True)
class Pack:
    """One forward pass of one rank."""

    batch: MicroBatch
    """What the loss needs. `input_ids` is [1, T/C]: this context rank's tokens. `positions` are places in the whole
    pack of T tokens."""
    position_ids: Tensor
    """[T/C] int64: place of each held token within its sequence."""
    attend: Attend
    chosen: Tensor
    """[n] int64: places among the held tokens whose next token is trained."""
    chosen_targets: Tensor
    """[n] int64: those next tokens."""
    chosen_rows: Tensor | None
    """[n] int64: which of the batch's N trained tokens they are; None: all of them, in order."""

    def to(self, device: torch.device) -> "Pack":
        """A copy whose tensors of the model's forward pass lie on `device`; those of the loss stay."""
        plan = self.attend
        return replace(
            self,
            batch=replace(self.batch, input_ids=self.batch.input_ids.to(device)),
            position_ids=self.position_ids.to(device),
            attend=replace(
                plan,
                keys=None if plan.keys is None else plan.keys.to(device),
                cu_q=plan.cu_q.to(device),
                cu_k=plan.cu_k.to(device),
            ),
            chosen=self.chosen.to(device),
            chosen_targets=self.chosen_targets.to(device),
            chosen_rows=None if self.chosen_rows is None else self.chosen_rows.to(device),
        )


def build_pack(
    rows: Sequence[Row],
    numbers: list[int],
    *,
    row_multiple: int = 1,
    pack_multiple: int = 1,
    context_rank: int = 0,
    context_ranks: int = 1,
) -> Pack:
    """Tensors for the rows `numbers`; with none, a pack of padding that trains nothing, for a rank that must take part
    in the collectives of the others' passes.

    Each document of a row is a sequence of its own. Its last id predicts nothing and is left out.
    """
    ids: list[int] = []
    places: list[int] = []
    lengths: list[int] = []
    positions: list[int] = []
    targets: list[int] = []
    sample: list[int] = []
    counts: list[int] = []

    def add(piece: Sequence[int], length: int) -> None:
        """A sequence of `piece`, padded to `length`. Padding attends to what precedes it and is never looked at."""
        ids.extend(piece)
        ids.extend([0] * (length - len(piece)))
        places.extend(range(length))
        lengths.append(length)

    for place, number in enumerate(numbers):
        row = rows[number]
        trained = row.trained().tolist()
        for start, stop in row.documents():
            base = len(ids) - start - 1
            positions += [base + at for at in trained if start < at < stop]
            if stop - start > 1:
                add(row.ids[start : stop - 1], _up(stop - start - 1, row_multiple))
        targets += [row.ids[at] for at in trained]
        sample += [place] * len(trained)
        counts.append(len(trained))
    total = _up(max(len(ids), 1), math.lcm(pack_multiple, ALIGN))
    if total > len(ids):
        add([], total - len(ids))

    held = local_tokens(lengths, context_rank, context_ranks)
    input_ids = torch.tensor(ids, dtype=torch.int64)[held]
    at, wanted = torch.tensor(positions, dtype=torch.int64), torch.tensor(targets, dtype=torch.int64)
    chosen, chosen_rows = at, None
    if context_ranks > 1:
        inverse = torch.full((total,), -1, dtype=torch.int64)
        inverse[held] = torch.arange(len(held))
        mine = inverse[at]
        chosen_rows = torch.nonzero(mine >= 0).flatten()
        chosen = mine[chosen_rows]
    batch = MicroBatch(
        rows=numbers,
        input_ids=input_ids[None],
        positions=at,
        targets=wanted,
        sample=torch.tensor(sample, dtype=torch.int64),
        sample_tokens=torch.tensor(counts or [0], dtype=torch.int64),
    )
    return Pack(
        batch=batch,
        position_ids=torch.tensor(places, dtype=torch.int64)[held],
        attend=attend(lengths, context_rank, context_ranks),
        chosen=chosen,
        chosen_targets=wanted if chosen_rows is None else wanted[chosen_rows],
        chosen_rows=chosen_rows,
    )


def _up(value: int, multiple: int) -> int:
    return -(-value // multiple) * multiple
