"""What a Megatron rank puts into a commit, and how it takes it up again: exactly, for the same layout of ranks."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from rljob_api.manifest.errors import UserError
from torch import Tensor

from rljob_trainer.checkpoint.files import FileEntry, hash_file, write_json
from rljob_trainer.checkpoint.tensors import ShardReader, write_shard
from rljob_trainer.training.megatron.layout import FIELD, Coordinates
from rljob_trainer.training.megatron.weights import named_parameters

if TYPE_CHECKING:
    from rljob_trainer.training.megatron.backend import MegatronBackend

FILE = "trainer.json"
FORMAT = "megatron-1"
MOMENTS = ("exp_avg", "exp_avg_sq")


def save_state(rank: "MegatronBackend", directory: str | Path) -> list[FileEntry]:
    """Float32 weights and moments of this rank's share, the reference, generators; rank 0 adds the layout."""
    return _write(directory, rank.rank, _about(rank), _tensors(rank))


def snapshot_state(rank: "MegatronBackend", directory: str | Path) -> Callable[[], list[FileEntry]]:
    """What `save_state` would write now, copied to host memory; the result writes it, in any thread."""
    tensors = {name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in _tensors(rank).items()}
    number, about = rank.rank, _about(rank)
    return lambda: _write(directory, number, about, tensors)


def _about(rank: "MegatronBackend") -> dict[str, Any]:
    return _layout(rank) | {"stage": rank.stage, "torch": torch.__version__}


def _tensors(rank: "MegatronBackend") -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = {}
    for slot in rank.optimizer.slots():
        tensors[f"weight.{slot.name}"] = slot.weight.data
        for key in MOMENTS:
            if key in slot.state:
                tensors[f"optimizer.{key}.{slot.name}"] = slot.state[key]
        if slot.steps is not None:
            tensors[f"optimizer.step.{slot.name}"] = slot.steps
    if rank.reference is not None and _keeps_reference(rank, rank.coordinates):
        for name, parameter in named_parameters(rank.reference, rank.layout, rank.coordinates):
            tensors[f"reference.{name}"] = parameter.data
    tensors["rng.cpu"] = torch.get_rng_state()
    tensors["rng.cuda"] = torch.cuda.get_rng_state()
    return tensors


def _write(
    directory: str | Path, rank: int, about: Mapping[str, Any], tensors: Mapping[str, Tensor]
) -> list[FileEntry]:
    entries = [write_shard(directory, rank, about["worldSize"], tensors)]
    if rank == 0:
        path = Path(directory) / FILE
        write_json(path, dict(about))
        entries.append(FileEntry(path.name, path.stat().st_size, hash_file(path)))
    return entries


@torch.no_grad()
def load_state(rank: "MegatronBackend", directory: str | Path) -> None:
    """Take up the state of a commit. Raises UserError when it was written by another backend or layout."""
    found = json.loads((Path(directory) / FILE).read_text(encoding="utf-8"))
    if found["format"] != FORMAT:
        raise UserError(
            f"the commit {directory} was not written by the megatron backend of this version (format "
            f"{found['format']!r}, not {FORMAT!r})",
            hint="start from its Hugging Face export instead",
        )
    for key, value in _layout(rank).items():
        if found[key] != value:
            raise UserError(
                f"{FIELD}: the commit {directory} was written with {key} {found[key]}, this run has {value}",
                hint="resume with the same layout, or start from the commit's Hugging Face export",
            )
    if found["stage"] == "rl":
        rank.enter_rl()
    with ShardReader(directory, rank.world_size) as reader:
        stepped = bool(reader.names("optimizer.step."))
        for slot in rank.optimizer.slots():
            slot.weight.data.copy_(reader.own(f"weight.{slot.name}", rank.rank))
            if stepped:
                slot.restore(
                    reader.own(f"optimizer.step.{slot.name}", rank.rank),
                    {key: reader.own(f"optimizer.{key}.{slot.name}", rank.rank) for key in MOMENTS},
                )
        rank.optimizer.publish()
        if rank.reference is not None:
            source = rank.rank if _keeps_reference(rank, rank.coordinates) else _keeper(rank)
            for name, parameter in named_parameters(rank.reference, rank.layout, rank.coordinates):
                parameter.copy_(reader.own(f"reference.{name}", source))
        torch.set_rng_state(reader.own("rng.cpu", rank.rank))
        torch.cuda.set_rng_state(reader.own("rng.cuda", rank.rank))


def _layout(rank: "MegatronBackend") -> dict[str, Any]:
    layout = rank.layout
    return {
        "format": FORMAT,
        "worldSize": layout.world,
        "tensor": layout.tensor,
        "pipeline": layout.pipeline,
        "context": layout.context,
        "expert": layout.expert,
    }


def _keeps_reference(rank: "MegatronBackend", coordinates: Coordinates) -> bool:
    """Data- and context-parallel ranks hold the same reference, unless they hold different experts of it."""
    return rank.layout.expert > 1 or (coordinates.data == 0 and coordinates.context == 0)


def _keeper(rank: "MegatronBackend") -> int:
    """The rank that wrote the reference of this one's coordinates."""
    coordinates, layout = rank.coordinates, rank.layout
    return coordinates.tensor + layout.tensor * layout.context * layout.data * coordinates.pipeline
