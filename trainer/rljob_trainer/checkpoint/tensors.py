"""A rank's tensors in a commit: one safetensors file per rank (no pickle), rows of each tensor in order of ranks.

The rows of all files, put one after the other, are the whole tensor; so another number of ranks can read them too.
"""

import os
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import torch
from torch import Tensor

from rljob_trainer.atomic_files import fsync_file
from rljob_trainer.checkpoint.files import FileEntry, hash_file

FILE_NAME = "trainer-{rank:05d}-of-{world_size:05d}.safetensors"


def write_shard(directory: str | Path, rank: int, world_size: int, tensors: Mapping[str, Tensor]) -> FileEntry:
    """Write this rank's tensors durably (fsync) and return the file's entry for the manifest."""
    from safetensors.torch import save_file

    path = Path(directory) / FILE_NAME.format(rank=rank, world_size=world_size)
    save_file({name: tensor.detach().contiguous().cpu() for name, tensor in tensors.items()}, path)
    fsync_file(path)
    return FileEntry(path.name, os.path.getsize(path), hash_file(path))


class ShardReader:
    """Reads rows of tensors from the files of all ranks, whatever their number was. A context manager."""

    def __init__(self, directory: str | Path, world_size: int) -> None:
        self.world_size = world_size
        self._paths = [
            Path(directory) / FILE_NAME.format(rank=rank, world_size=world_size) for rank in range(world_size)
        ]
        self._stack = ExitStack()
        self._files: list[Any] = []

    def __enter__(self) -> Self:
        from safetensors import safe_open

        self._files = [self._stack.enter_context(safe_open(path, framework="pt")) for path in self._paths]
        self._names = set(self._files[0].keys())
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._stack.close()

    def __contains__(self, name: str) -> bool:
        return name in self._names

    def names(self, prefix: str) -> set[str]:
        """Names of the tensors that begin with `prefix`."""
        return {name for name in self._names if name.startswith(prefix)}

    def own(self, name: str, rank: int) -> Tensor:
        """A tensor that is not sharded, as rank `rank` wrote it."""
        tensor: Tensor = self._files[rank].get_tensor(name)
        return tensor

    def length(self, name: str) -> int:
        """Rows of the whole tensor."""
        return sum(int(file.get_slice(name).get_shape()[0]) for file in self._files)

    def rows(self, name: str, start: int, stop: int) -> Tensor:
        """Rows [start, stop) of the whole tensor."""
        parts: list[Tensor] = []
        offset = 0
        for file in self._files:
            piece = file.get_slice(name)
            count = piece.get_shape()[0]
            low, high = max(start, offset), min(stop, offset + count)
            if low < high or (count == 0 and not parts):
                parts.append(piece[low - offset : high - offset] if count else file.get_tensor(name))
            offset += count
        if stop > offset:
            raise ValueError(f"{name} has {offset} rows in the commit, {stop} are asked for")
        if start >= stop:
            empty: Tensor = self._files[0].get_tensor(name)[:0]
            return empty
        return torch.cat(parts) if len(parts) > 1 else parts[0]
