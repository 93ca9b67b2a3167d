"""Megatron's distributed checkpoints (`torch_dist`), written and read tensor by tensor, without Megatron.

    <folder>/latest_checkpointed_iteration.txt     "release", or a number
    <folder>/release/                              or iter_0000123/
        common.pt, metadata.json                   what is not a tensor; the format's name
        .metadata, __0_0.distcp, …                 torch.distributed.checkpoint

Memory stays at one layer's tensor: the writer's planner makes each chunk when its turn comes, the reader asks for one
at a time.
"""

import io
import json
import pickle
from collections.abc import Callable, Iterator
from math import prod
from pathlib import Path
from typing import Any

import torch
from rljob_api.errors import UserError
from torch import Tensor
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner, create_default_global_save_plan
from torch.distributed.checkpoint.filesystem import FileSystemReader, FileSystemWriter
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorProperties,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.planner import (
    LoadPlan,
    ReadItem,
    SavePlan,
    SavePlanner,
    TensorWriteData,
    WriteItem,
    WriteItemType,
)
from torch.distributed.checkpoint.planner_helpers import create_read_items_for_chunk_list
from torch.distributed.checkpoint.state_dict_saver import save

from rljob_trainer.export.architecture import Architecture
from rljob_trainer.export.mapping import Entry, entries
from rljob_trainer.export.places import Place, alias_of, candidates, extra_states, place_of

LATEST = "latest_checkpointed_iteration.txt"
RELEASE = "release"
FORMAT_FILE = "metadata.json"
Progress = Callable[[int, int], None]
"""Told the bytes done and the bytes in all."""


def checkpoint_folder(path: Path) -> Path:
    """The folder with `metadata.json`: `path` itself, or the latest iteration beneath it. Raises UserError."""
    if (path / FORMAT_FILE).is_file():
        folder = path
    else:
        if not (path / LATEST).is_file():
            raise UserError(f"{path} is no Megatron checkpoint: it has neither {FORMAT_FILE} nor {LATEST}")
        latest = (path / LATEST).read_text(encoding="utf-8").strip()
        folder = path / (latest if latest == RELEASE else f"iter_{int(latest):07d}" if latest.isdigit() else latest)
        if not (folder / FORMAT_FILE).is_file():
            raise UserError(f"{path / LATEST} names {latest!r}, but {folder / FORMAT_FILE} is not there")
    kind = json.loads((folder / FORMAT_FILE).read_text(encoding="utf-8")).get("sharded_backend")
    if kind != "torch_dist":
        raise UserError(f"{folder} is a checkpoint of format {kind!r}; torch_dist is needed")
    return folder


def write_checkpoint(
    folder: Path,
    arch: Architecture,
    make: Callable[[Entry], Tensor],
    dtype_of: Callable[[Entry], torch.dtype],
    *,
    padded_vocab_size: int,
    progress: Progress | None = None,
) -> None:
    """Write a checkpoint of the model's weights into `folder` (created; nothing in it yet).

    make: a whole tensor of Megatron's, the vocabulary already padded; called once each, in the order of `entries`.
    dtype_of: its dtype, known before.
    """
    target = folder / RELEASE
    target.mkdir(parents=True)
    planner = _StreamSavePlanner(arch, make, dtype_of, padded_vocab_size, progress or (lambda done, total: None))
    save({}, storage_writer=FileSystemWriter(target), planner=planner, no_dist=True)
    # Plain types alone: torch.load reads them with weights_only. The second tells Megatron how to ask for the tensors.
    content = {"singleton_local_shards": False, "non_homogeneous_layers": not arch.uniform}
    torch.save({"checkpoint_version": 3.0, "iteration": 0, "content_metadata": content}, target / "common.pt")
    form = {"sharded_backend": "torch_dist", "sharded_backend_version": 1}
    form |= {"common_backend": "torch", "common_backend_version": 1}
    (target / FORMAT_FILE).write_text(json.dumps(form), encoding="utf-8")
    (folder / LATEST).write_text(RELEASE, encoding="utf-8")


class _StreamSavePlanner(SavePlanner):
    """Plans all chunks by their shapes, and makes each when it is written."""

    def __init__(
        self,
        arch: Architecture,
        make: Callable[[Entry], Tensor],
        dtype_of: Callable[[Entry], torch.dtype],
        vocab: int,
        progress: Progress,
    ) -> None:
        self._arch, self._make, self._progress = arch, make, progress
        self._done, self._total = 0, 0
        self._sources: dict[tuple[str, tuple[int, ...]], tuple[Entry, tuple[int, ...]]] = {}
        self._items: list[WriteItem] = []
        for entry in entries(arch):
            shape = entry.shape(arch, vocab)
            dtype = dtype_of(entry)
            for name in filter(None, (entry.name, alias_of(entry.name))):
                self._plan(entry, place_of(arch, name, stacked=arch.uniform), shape, dtype)
        for key in extra_states(arch, stacked=arch.uniform):
            self._items.append(WriteItem(index=MetadataIndex(key), type=WriteItemType.BYTE_IO))

    def _plan(self, entry: Entry, place: Place, shape: tuple[int, ...], dtype: torch.dtype) -> None:
        offsets = place.index + (0,) * len(shape)
        sizes = (1,) * len(place.index) + shape
        chunk = ChunkStorageMetadata(offsets=torch.Size(offsets), sizes=torch.Size(sizes))
        data = TensorWriteData(chunk, TensorProperties(dtype=dtype), torch.Size(place.counts + shape))
        index = MetadataIndex(place.key, torch.Size(offsets))
        self._items.append(WriteItem(index=index, type=WriteItemType.SHARD, tensor_data=data))
        self._sources[place.key, offsets] = (entry, sizes)
        self._total += prod(sizes) * dtype.itemsize

    def set_up_planner(self, state_dict: Any, storage_meta: Any = None, is_coordinator: bool = False) -> None:
        """Nothing: the plan is known from the architecture."""

    def create_local_plan(self) -> SavePlan:
        return SavePlan(self._items)

    def create_global_plan(self, all_plans: list[SavePlan]) -> tuple[list[SavePlan], Metadata]:
        return create_default_global_save_plan(all_plans)

    def finish_plan(self, new_plan: SavePlan) -> SavePlan:
        return new_plan

    def resolve_data(self, write_item: WriteItem) -> Tensor | io.BytesIO:
        if write_item.type == WriteItemType.BYTE_IO:
            empty = io.BytesIO()
            torch.save([None], empty)
            return empty
        entry, sizes = self._sources[write_item.index.fqn, tuple(write_item.index.offset or ())]
        # Cloned when it is a view: a chunk is stored with the whole of its storage.
        tensor = self._make(entry).reshape(sizes).contiguous()
        if tensor.untyped_storage().nbytes() != tensor.numel() * tensor.element_size():
            tensor = tensor.clone()
        self._done += tensor.numel() * tensor.element_size()
        self._progress(self._done, self._total)
        return tensor


class CheckpointReader:
    """Reads a checkpoint's tensors by their canonical names, whoever wrote it and on however many ranks."""

    def __init__(self, path: Path, arch: Architecture) -> None:
        self._arch, self._folder = arch, checkpoint_folder(path)
        self._reader = FileSystemReader(self._folder)
        self._metadata = _read_metadata(self._folder / ".metadata")
        self._reader.set_up_storage_reader(self._metadata, is_coordinator=True)

    def nbytes(self) -> int:
        """Size of the model's tensors."""
        return sum(
            prod(self._shape(place, meta)) * meta.properties.dtype.itemsize
            for place, meta in (self._find(entry.name) for entry in entries(self._arch))
        )

    def stream(self) -> Iterator[tuple[str, Tensor]]:
        """All tensors, in the order of `entries`. Raises UserError for one that is missing."""
        for entry in entries(self._arch):
            yield entry.name, self.get(entry.name)

    def get(self, name: str) -> Tensor:
        """One whole tensor."""
        place, meta = self._find(name)
        shape = self._shape(place, meta)
        target = torch.empty((1,) * len(place.index) + shape, dtype=meta.properties.dtype)
        wanted = ChunkStorageMetadata(
            offsets=torch.Size(place.index + (0,) * len(shape)), sizes=torch.Size(target.shape)
        )
        items = create_read_items_for_chunk_list(place.key, meta, [wanted])
        if sum(prod(item.lengths) for item in items) != target.numel():
            raise UserError(f"{self._folder}: parts of {place.key} are missing")
        try:
            self._reader.read_data(LoadPlan(items), _Into(target)).wait()
        except (OSError, EOFError, RuntimeError, pickle.UnpicklingError) as error:
            raise UserError(f"{self._folder}: {place.key} cannot be read: {str(error).splitlines()[0]}") from error
        return target.reshape(shape)

    def _find(self, name: str) -> tuple[Place, TensorStorageMetadata]:
        for place in candidates(self._arch, name):
            meta = self._metadata.state_dict_metadata.get(place.key)
            if not isinstance(meta, TensorStorageMetadata):
                continue
            if place.counts and tuple(meta.size[: len(place.counts)]) != place.counts:
                raise UserError(
                    f"{self._folder}: {place.key} is a stack of {tuple(meta.size[: len(place.counts)])}, "
                    f"the config asks for {place.counts}"
                )
            return place, meta
        raise UserError(f"{self._folder} has no tensor {name!r}: it is another model's checkpoint")

    def _shape(self, place: Place, meta: TensorStorageMetadata) -> tuple[int, ...]:
        return tuple(meta.size[len(place.index) :])


class _Into(DefaultLoadPlanner):
    """Reads into one tensor."""

    def __init__(self, target: Tensor) -> None:
        super().__init__()
        self._target = target

    def resolve_tensor(self, read_item: ReadItem) -> Tensor:
        view = self._target
        for axis, (offset, length) in enumerate(zip(read_item.dest_offsets, read_item.lengths, strict=True)):
            view = view.narrow(axis, offset, length)
        return view

    def commit_tensor(self, read_item: ReadItem, tensor: Tensor) -> None:
        """Nothing: it was read in place."""


class _MetadataUnpickler(pickle.Unpickler):
    """`.metadata` is a pickle: only what such a file is made of may be in it, so that opening one runs no code."""

    _ALLOWED = frozenset(
        {
            ("builtins", "set"), ("builtins", "list"), ("builtins", "dict"), ("collections", "OrderedDict"),
            ("torch", "Size"), ("torch.serialization", "_get_layout"),
            ("torch.distributed.checkpoint.filesystem", "_StorageInfo"),
            ("torch.distributed.checkpoint.filesystem", "_StoragePrefix"),
            ("pathlib", "PosixPath"), ("pathlib", "PurePosixPath"), ("pathlib._local", "PosixPath"),
        }
    )  # fmt: skip

    _OF_CLASSES = ("torch.distributed.checkpoint.metadata", "torch.distributed.checkpoint.planner")

    def find_class(self, module: str, name: str) -> Any:
        if module.startswith("megatron.core.dist_checkpointing."):
            return Metadata  # older versions of megatron-core store a subclass of it
        if module == "torch" and isinstance(getattr(torch, name, None), torch.dtype):
            return getattr(torch, name)
        if (module, name) in self._ALLOWED:
            return super().find_class(module, name)
        if module in self._OF_CLASSES and "." not in name:
            found = super().find_class(module, name)
            if isinstance(found, type) and found.__module__ == module:
                return found
        raise pickle.UnpicklingError(f"it refers to {module}.{name}")


def _read_metadata(path: Path) -> Metadata:
    try:
        with path.open("rb") as file:
            metadata = _MetadataUnpickler(file).load()
    except FileNotFoundError:
        raise UserError(f"{path} is missing: the checkpoint is not whole") from None
    except (pickle.UnpicklingError, EOFError, AttributeError, ValueError, IndexError) as error:
        raise UserError(f"{path} cannot be read: {error}") from error
    if not isinstance(metadata, Metadata):
        raise UserError(f"{path} cannot be read: it holds no metadata")
    return metadata
