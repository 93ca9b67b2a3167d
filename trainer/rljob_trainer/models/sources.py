"""Where weights come from, read row by row: no rank ever holds a model that it does not keep.

All sources speak the names of the transformers model in memory. Rows are those of a tensor's first axis.
"""

import json
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self

import torch
from rljob_api.errors import UserError
from torch import Tensor

from rljob_trainer.checkpoint.tensors import ShardReader
from rljob_trainer.export.architecture import architecture_of
from rljob_trainer.export.hf_folder import HfFolder
from rljob_trainer.export.layout import resize_rows
from rljob_trainer.export.mapping import Entry, entries
from rljob_trainer.export.torch_dist import CheckpointReader

_FUSED = re.compile(r"^(.*\.mlp\.experts)\.(gate_up_proj|down_proj)$")


class WeightSource(Protocol):
    """Reads weights. A context manager."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None
    ) -> None: ...

    def lacks(self, names: Iterable[str]) -> list[str]:
        """Those of `names` that are not there."""

    def length(self, name: str) -> int | None:
        """Rows of a tensor; None when that cannot be told cheaply."""

    def rows(self, name: str, start: int, stop: int) -> Tensor:
        """Rows [start, stop) of a tensor, on the CPU. Fewer when it ends before."""


class FolderWeights:
    """The safetensors of a Hugging Face folder. Experts are stacked as the model in memory has them."""

    def __init__(self, path: Path) -> None:
        self._folder = HfFolder(path)

    def __enter__(self) -> Self:
        self._folder.__enter__()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._folder.__exit__(kind, error, tb)

    def lacks(self, names: Iterable[str]) -> list[str]:
        """Names that the folder has neither as they are nor expert by expert."""
        return [name for name in names if any(part not in self._folder for part in self._parts(name, 0))]

    def length(self, name: str) -> int | None:
        """Rows; not known for a stack of experts."""
        return self._folder.shape(name)[0] if name in self._folder else None

    def rows(self, name: str, start: int, stop: int) -> Tensor:
        """Rows, or experts of a stack of them."""
        if name in self._folder:
            return self._folder.rows(name, start, stop)
        return _stack(self._folder.get, name, start, stop)

    def _parts(self, name: str, expert: int) -> list[str]:
        return [name] if name in self._folder else _expert_names(name, expert)


class CommitWeights:
    """The weights in a commit, whatever number of ranks wrote it."""

    def __init__(self, path: Path) -> None:
        layout = path / "trainer.json"
        if not layout.is_file():
            raise UserError(f"the commit {path} was not made by the fsdp backend: it has no {layout.name}")
        self._reader = ShardReader(path, int(json.loads(layout.read_text(encoding="utf-8"))["worldSize"]))

    def __enter__(self) -> Self:
        self._reader.__enter__()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._reader.__exit__(kind, error, tb)

    def lacks(self, names: Iterable[str]) -> list[str]:
        """Names that the commit does not have."""
        return [name for name in names if f"model.{name}" not in self._reader]

    def length(self, name: str) -> int | None:
        """Rows of the whole tensor."""
        return self._reader.length(f"model.{name}")

    def rows(self, name: str, start: int, stop: int) -> Tensor:
        """Rows of the whole tensor."""
        length = self._reader.length(f"model.{name}")
        return self._reader.rows(f"model.{name}", min(start, length), min(stop, length))


class MegatronWeights:
    """A Megatron checkpoint (torch_dist); needs the model's config. One tensor of Megatron's is held at a time."""

    def __init__(self, path: Path, config: Any) -> None:
        self._arch = architecture_of(config)
        self._reader = CheckpointReader(path, self._arch)
        self._entries: dict[str, Entry] = {hf: entry for entry in entries(self._arch) for hf in entry.hf_names}
        self._held: tuple[str, dict[str, Tensor]] = ("", {})

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._held = ("", {})

    def lacks(self, names: Iterable[str]) -> list[str]:
        """Names that the architecture does not have."""
        return [name for name in names if any(part not in self._entries for part in _expert_names(name, 0))]

    def length(self, name: str) -> int | None:
        """Rows, without the padding of a vocabulary; not known for a stack of experts."""
        return self._get(name).shape[0] if name in self._entries else None

    def rows(self, name: str, start: int, stop: int) -> Tensor:
        """Rows, or experts of a stack of them; the padding of a vocabulary is cut off."""
        if name in self._entries:
            return self._get(name)[start:stop]
        return _stack(self._get, name, start, stop)

    def _get(self, name: str) -> Tensor:
        entry = self._entries[name]
        if self._held[0] != entry.name:
            tensor = self._reader.get(entry.name)
            if entry.kind == "vocab" and tensor.shape[0] > self._arch.vocab:
                tensor = resize_rows(tensor, self._arch.vocab)
            self._held = (entry.name, dict(entry.split(self._arch, tensor)))
        return self._held[1][name]


def _expert_names(name: str, expert: int) -> list[str]:
    found = _FUSED.match(name)
    if found is None:
        return [name]
    which = ("down",) if found[2] == "down_proj" else ("gate", "up")
    return [f"{found[1]}.{expert}.{part}_proj.weight" for part in which]


def _stack(get: Callable[[str], Tensor], name: str, start: int, stop: int) -> Tensor:
    """Experts [start, stop) as one tensor."""
    experts = [torch.cat([get(part) for part in _expert_names(name, expert)]) for expert in range(start, stop)]
    if experts:
        return torch.stack(experts)
    one = torch.cat([get(part) for part in _expert_names(name, 0)])  # this rank has none: the shape of none
    return one.new_empty(0, *one.shape)
