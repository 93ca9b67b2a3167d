"""Random access to a corpus in a JSONL file that need not fit into memory."""

import hashlib
import mmap
import os
from array import array
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import orjson
from numpy.typing import NDArray
from rljob_api.errors import UserError

_BLOCK = 1 << 16
_SAMPLES = 64

Document = dict[str, Any]
"""A passage as the corpus has it: `id`, `contents`, and whatever else the line holds."""


def read_passages(path: Path) -> Iterator[tuple[int, Document]]:
    """Each passage with the byte offset of its line. Raises UserError, naming the line, for one that is malformed."""
    offset = 0
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if line.strip():
                yield offset, parse_passage(line, path, f"line {number}")
            offset += len(line)


def parse_passage(line: bytes, path: Path, where: str) -> Document:
    """One line of the corpus."""
    try:
        document = orjson.loads(line)
    except orjson.JSONDecodeError as error:
        raise UserError(f"spec.retriever.corpus: {path}, {where}: not valid JSON: {error}") from None
    if not isinstance(document, dict) or not isinstance(document.get("contents"), str) or "id" not in document:
        raise UserError(f"spec.retriever.corpus: {path}, {where}: a passage needs `id` and `contents` (text)")
    return document


def corpus_fingerprint(path: Path) -> str:
    """Size and a hash of 64 evenly spread blocks: seconds instead of minutes for a corpus of many gigabytes."""
    size = path.stat().st_size
    digest = hashlib.sha256(str(size).encode())
    with path.open("rb") as file:
        for sample in range(_SAMPLES):
            file.seek(max(0, size - _BLOCK) * sample // (_SAMPLES - 1))
            digest.update(file.read(_BLOCK))
    return digest.hexdigest()


def scan_offsets(path: Path) -> NDArray[np.int64]:
    """Byte offsets of the passages' lines, for an index that came without them."""
    offsets = array("q")
    offset = 0
    with path.open("rb") as file:
        for line in file:
            if line.strip():
                offsets.append(offset)
            offset += len(line)
    return np.frombuffer(offsets, dtype=np.int64) if offsets else np.empty(0, dtype=np.int64)


class Corpus:
    """Passages by row. The file is mapped, not read: memory is used for the pages that are looked at."""

    def __init__(self, path: Path, offsets: NDArray[np.int64]) -> None:
        """`offsets`: byte offset of each passage's line, ascending (may itself be memory-mapped)."""
        self.path = path
        self._offsets = offsets
        if path.stat().st_size == 0 or len(offsets) == 0:
            raise UserError(f"spec.retriever.corpus: {path} has no passages")
        with path.open("rb") as file:
            self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        if hasattr(mmap, "MADV_RANDOM") and os.name == "posix":
            self._map.madvise(mmap.MADV_RANDOM)

    def __len__(self) -> int:
        return len(self._offsets)

    def __getitem__(self, row: int) -> Document:
        """The passage of a row. Safe to call from several threads."""
        start = int(self._offsets[row])
        end = int(self._offsets[row + 1]) if row + 1 < len(self._offsets) else len(self._map)
        return parse_passage(self._map[start:end], self.path, f"row {row}")
