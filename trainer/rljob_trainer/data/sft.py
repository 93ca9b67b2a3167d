"""Demonstrations for supervised fine-tuning: token ids, and a mask of those that the loss is taken on."""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, overload

from rljob_api.errors import UserError
from rljob_api.v1alpha1.data import SftDataset

from rljob_trainer.data.demonstrations import WHERE
from rljob_trainer.data.encode import Encoded
from rljob_trainer.data.hub import HubAccess
from rljob_trainer.data.prompts import epoch_order
from rljob_trainer.data.rows import data_files, report_skipped
from rljob_trainer.data.sft_store import Store, key_of, open_or_make
from rljob_trainer.data.tokenize import Progress, ProgressLine, Recipe, tokenize_files

log = logging.getLogger(__name__)
CACHE = "cache/sft"
"""Where tokenised demonstrations are kept, in the job's directory."""


@dataclass(frozen=True, slots=True)
class SftRow:
    """A demonstration, or several packed into one sequence. `input_ids` and `loss_mask` (1: trained on) have one
    length."""

    input_ids: list[int]
    loss_mask: list[int]
    lengths: list[int] | None = None
    """Tokens of each packed demonstration, in order; they sum to len(input_ids). None: one, not packed."""


class SftRows(Sequence[SftRow]):
    """The rows of a store, read when asked for."""

    def __init__(self, store: Store, packed: bool) -> None:
        self._store, self._packed = store, packed

    def __len__(self) -> int:
        return self._store.counts.sequences

    @overload
    def __getitem__(self, number: int) -> SftRow: ...
    @overload
    def __getitem__(self, number: slice) -> list[SftRow]: ...
    def __getitem__(self, number: int | slice) -> SftRow | list[SftRow]:
        if isinstance(number, slice):
            return [self[at] for at in range(*number.indices(len(self)))]
        if not -len(self) <= number < len(self):
            raise IndexError(number)
        ids, mask, lengths = self._store.sequence(number % len(self))
        return SftRow(ids, mask, lengths if self._packed else None)

    def __iter__(self) -> Iterator[SftRow]:
        return (self[number] for number in range(len(self)))


class SftSource:
    """Demonstrations in batches by step: any process can ask for any step's batch, so there is no cursor to keep."""

    def __init__(
        self,
        dataset: SftDataset,
        tokenizer: Any,
        job_dir: str | Path,
        *,
        batch_size: int,
        seed: int,
        max_length: int,
        packing: bool = False,
        processes: int | None = None,
        progress: Progress | None = None,
        hub: HubAccess | None = None,
    ) -> None:
        """`tokenizer` is a transformers tokenizer; rows of more than `max_length` tokens are left out and counted.

        With `packing` a row is a sequence of at most `max_length` tokens made of whole demonstrations. Tokenised once
        per content, template, tokenizer and settings, in `processes` processes (by default as many as help), and kept
        in the job's directory.
        """
        paths = data_files(dataset.path, dataset.split, job_dir, f"{WHERE}.path", hub)
        recipe = Recipe.of(dataset, tokenizer)
        folder = Path(job_dir).resolve() / CACHE / key_of(paths, recipe, dataset.limit, max_length, packing)

        def make() -> Iterator[Encoded]:
            shown = progress or ProgressLine("tokenising demonstrations")
            return tokenize_files(recipe, paths, dataset.limit, processes=processes, progress=shown)

        store = open_or_make(folder, make, max_length, packing)
        self.counts = counts = store.counts
        path = paths[0]
        if not counts.rows:
            raise UserError(f"{WHERE}.path: {path} has no rows")
        if counts.untrained:
            log.warning(
                "%s: %d of %d rows have no token to train on and are left out", path, counts.untrained, counts.rows
            )
        if counts.untrained == counts.rows:
            raise UserError(f"{WHERE}: no row of {path} has a token to train on (an assistant's turn)")
        field = "spec.sft.maxSequenceLength"
        report_skipped(counts.too_long, counts.documents, path, max_length, "tokens", field)
        if packing:
            density = counts.tokens / (counts.sequences * max_length)
            log.info("%d demonstrations in %d sequences, %.1f %% full", counts.documents, len(self), 100 * density)
        self.skipped = counts.too_long
        self.rows = SftRows(store, packing)
        self._batch_size = batch_size
        self._seed = seed
        self._order = lru_cache(maxsize=2)(self._epoch_order)

    def __len__(self) -> int:
        """Rows of one epoch; packed sequences when packing."""
        return self.counts.sequences

    def batch(self, step: int) -> list[SftRow]:
        """The rows of step `step` (from 0): epochs, each in an order of its own, follow one another without a gap."""
        rows = []
        for position in range(step * self._batch_size, (step + 1) * self._batch_size):
            epoch, place = divmod(position, len(self))
            rows.append(self.rows[self._order(epoch)[place]])
        return rows

    def _epoch_order(self, epoch: int) -> list[int]:
        return epoch_order(len(self), self._seed, "sft", epoch)
