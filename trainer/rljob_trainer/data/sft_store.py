"""Tokenised and packed demonstrations on disk: made once, read by every later process, found by what they are made of.

A folder `cache/sft/<key>` in the job's directory, written beside its place and renamed:
`ids.bin` int32, `mask.bin` uint8 (1: trained on), `documents.npy` int64 [D + 1] (where each begins), `sequences.npy`
int64 [S + 1] and `order.npy` int64 [D] (sequence s is the documents order[sequences[s]:sequences[s + 1]]), `meta.json`.
"""

import hashlib
import json
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import accumulate, chain
from pathlib import Path
from typing import Any

import numpy as np

from rljob_trainer.atomic_files import replaced_folder
from rljob_trainer.data.encode import Encoded
from rljob_trainer.data.packing import pack
from rljob_trainer.file_lock import exclusive

FORMAT = 1
LOCK_SECONDS = 6 * 3600.0
"""Another pod may be at work on the same data for hours; then something is wrong."""
_META = "meta.json"


@dataclass(frozen=True)
class Counts:
    """What became of the rows."""

    rows: int
    """Rows of the files."""
    documents: int
    """Those that are trained on."""
    too_long: int
    untrained: int
    """Rows without a token to train on."""
    tokens: int
    """Tokens of the documents."""
    sequences: int
    """Packed sequences, or the documents when nothing is packed."""


class Store:
    """Read access; the arrays stay on disk until they are touched."""

    def __init__(self, folder: Path) -> None:
        self.counts = Counts(**json.loads((folder / _META).read_text(encoding="utf-8"))["counts"])
        self._documents = np.load(folder / "documents.npy")
        self._sequences = np.load(folder / "sequences.npy")
        self._order = np.load(folder / "order.npy")
        self._ids = np.memmap(folder / "ids.bin", dtype=np.int32, mode="r")
        self._mask = np.memmap(folder / "mask.bin", dtype=np.uint8, mode="r")

    def sequence(self, number: int) -> tuple[list[int], list[int], list[int]]:
        """Ids, mask and lengths of the documents of a sequence, one after another."""
        ids: list[int] = []
        mask: list[int] = []
        lengths: list[int] = []
        for document in self._order[self._sequences[number] : self._sequences[number + 1]]:
            start, end = self._documents[document], self._documents[document + 1]
            ids += self._ids[start:end].tolist()
            mask += self._mask[start:end].tolist()
            lengths.append(int(end - start))
        return ids, mask, lengths


def key_of(paths: Sequence[Path], *settings: Any) -> str:
    """Names the content of the files, and `settings` (anything with a `repr` of its own)."""
    digest = hashlib.blake2b(repr((FORMAT, settings)).encode(), digest_size=16)
    for path in paths:
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=32)).digest())
    return digest.hexdigest()


def open_or_make(folder: Path, make: Callable[[], Iterable[Encoded]], max_length: int, packing: bool) -> Store:
    """The store at `folder`; made by the first process that asks, while the others wait for it.

    `make` gives the rows in order. Raises UserError when another process is at work for longer than LOCK_SECONDS.
    """
    if (found := _intact(folder)) is not None:
        return found
    with exclusive(folder.with_name(f".{folder.name}.lock"), LOCK_SECONDS):
        if (found := _intact(folder)) is not None:
            return found
        shutil.rmtree(folder, ignore_errors=True)  # damaged: the disk may have no room for both
        with replaced_folder(folder, fsync=True) as temporary:
            temporary.mkdir()
            _write(temporary, make(), max_length, packing)
    return Store(folder)


def _intact(folder: Path) -> Store | None:
    """The store, when it is there and its files have the sizes that it says."""
    try:
        sizes = json.loads((folder / _META).read_text(encoding="utf-8"))["sizes"]
        if all((folder / name).stat().st_size == size for name, size in sizes.items()):
            return Store(folder)
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return None


def _write(folder: Path, blocks: Iterable[Encoded], max_length: int, packing: bool) -> None:
    rows = too_long = untrained = 0
    lengths: list[int] = []
    with (folder / "ids.bin").open("wb") as ids, (folder / "mask.bin").open("wb") as mask:
        for block in blocks:
            rows += len(block.lengths)
            for start, end in _runs(block, max_length):
                ids.write(block.ids[start:end].tobytes())
                mask.write(block.mask[start:end].tobytes())
            fitting, without = _fitting(block, max_length)
            lengths += [length for length, keep in zip(block.lengths, fitting, strict=True) if keep]
            untrained += without
            too_long += len(block.lengths) - sum(fitting) - without
        if not lengths:
            for file in (ids, mask):
                file.write(b"\0" * 4)  # an empty file cannot be mapped
    sequences = pack(lengths, max_length) if packing else [[number] for number in range(len(lengths))]
    np.save(folder / "documents.npy", np.array([0, *accumulate(lengths)], dtype=np.int64))
    np.save(folder / "sequences.npy", np.array([0, *accumulate(map(len, sequences))], dtype=np.int64))
    np.save(folder / "order.npy", np.fromiter(chain.from_iterable(sequences), dtype=np.int64, count=len(lengths)))
    counts = Counts(rows, len(lengths), too_long, untrained, sum(lengths), len(sequences))
    sizes = {written.name: written.stat().st_size for written in folder.iterdir()}
    (folder / _META).write_text(json.dumps({"counts": asdict(counts), "sizes": sizes}), encoding="utf-8")


def _fitting(block: Encoded, max_length: int) -> tuple[list[bool], int]:
    """Which rows of a block are trained on, and how many have nothing to train on."""
    ends = np.array([0, *accumulate(block.lengths)], dtype=np.int64)
    trained_before = np.concatenate([[0], np.cumsum(block.mask, dtype=np.int64)])
    trained = trained_before[ends[1:]] > trained_before[ends[:-1]]
    fits = np.array(block.lengths, dtype=np.int64) <= max_length
    return (trained & fits).tolist(), int((~trained).sum())


def _runs(block: Encoded, max_length: int) -> Iterator[tuple[int, int]]:
    """The tokens of the rows that are kept, as few stretches as there are."""
    start = at = 0
    for length, keep in zip(block.lengths, _fitting(block, max_length)[0], strict=True):
        if not keep:
            if at > start:
                yield start, at
            start = at + length
        at += length
    if at > start:
        yield start, at
