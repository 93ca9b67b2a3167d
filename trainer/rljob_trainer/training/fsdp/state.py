"""What a rank puts into a commit, and how it takes it up again: exactly, to the bit, for the same number of ranks."""

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from rljob_api.manifest.errors import UserError
from torch import Tensor, nn

from rljob_trainer.checkpoint.files import FileEntry, hash_file, write_json
from rljob_trainer.checkpoint.tensors import ShardReader, write_shard
from rljob_trainer.training.fsdp.shards import local, own_rows, parameters

if TYPE_CHECKING:
    from rljob_trainer.training.fsdp.backend import FsdpBackend

LAYOUT = "trainer.json"
FORMAT = 1
MOMENTS = ("exp_avg", "exp_avg_sq")


def save_state(rank: "FsdpBackend", directory: str | Path) -> list[FileEntry]:
    """Weights, reference, optimizer and generators of this rank; rank 0 adds the layout. Returns manifest entries."""
    return _write(directory, rank.rank, rank.world_size, rank.stage, _tensors(rank))


def snapshot_state(rank: "FsdpBackend", directory: str | Path) -> Callable[[], list[FileEntry]]:
    """What `save_state` would write now, copied to host memory; the result writes it, in any thread."""
    tensors = {name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in _tensors(rank).items()}
    number, world_size, stage = rank.rank, rank.world_size, rank.stage
    return lambda: _write(directory, number, world_size, stage, tensors)


def _tensors(rank: "FsdpBackend") -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = {}
    for model, optimizer, module, adam in _trained(rank):
        for name, parameter in parameters(module):
            tensors[f"{model}.{name}"] = local(parameter)
            state = adam.state.get(parameter, {})
            for key in MOMENTS:
                if key in state:
                    tensors[f"{optimizer}.{key}.{name}"] = local(state[key])
            if "step" in state:
                tensors[f"{optimizer}.step.{name}"] = local(torch.as_tensor(state["step"])).reshape(1)
    if rank.reference is not None:
        tensors |= {f"reference.{name}": local(parameter) for name, parameter in parameters(rank.reference)}
    tensors["rng.cpu"] = torch.get_rng_state()
    if rank.device.type == "cuda":
        tensors["rng.cuda"] = torch.cuda.get_rng_state()
    return tensors


def _write(
    directory: str | Path, rank: int, world_size: int, stage: str, tensors: Mapping[str, Tensor]
) -> list[FileEntry]:
    entries = [write_shard(directory, rank, world_size, tensors)]
    if rank == 0:
        path = Path(directory) / LAYOUT
        write_json(path, {"format": FORMAT, "stage": stage, "worldSize": world_size, "torch": torch.__version__})
        entries.append(FileEntry(path.name, path.stat().st_size, hash_file(path)))
    return entries


@torch.no_grad()
def load_state(rank: "FsdpBackend", directory: str | Path) -> None:
    """Take up the state of a commit. With another number of ranks than it was written by, weights and optimizer are
    shared out anew (the numbers that follow may then differ in rounding), and the generators start from the seed."""
    layout = json.loads((Path(directory) / LAYOUT).read_text(encoding="utf-8"))
    if layout["format"] != FORMAT:
        raise UserError(f"the commit {directory} has trainer format {layout['format']}; this version reads {FORMAT}")
    world_size = int(layout["worldSize"])
    if layout["stage"] == "rl":
        rank.enter_rl()
    with ShardReader(directory, world_size) as reader:
        surplus = reader.names("model.") - {f"model.{name}" for name, _ in parameters(rank.policy)}
        if surplus:
            raise UserError(f"the model has no tensor {min(surplus)!r} of the commit: it was made with another model")
        for model, optimizer, module, adam in _trained(rank):
            for name, parameter in parameters(module):
                _copy(reader, f"{model}.{name}", parameter, rank)
                _copy_moments(reader, f"{optimizer}.", name, parameter, adam, rank)
        if rank.reference is not None:
            for name, parameter in parameters(rank.reference):
                if f"reference.{name}" in reader:
                    _copy(reader, f"reference.{name}", parameter, rank)
        if world_size == rank.world_size:
            torch.set_rng_state(reader.own("rng.cpu", rank.rank))
            if rank.device.type == "cuda" and "rng.cuda" in reader:
                torch.cuda.set_rng_state(reader.own("rng.cuda", rank.rank))


def _trained(rank: "FsdpBackend") -> Iterator[tuple[str, str, nn.Module, torch.optim.AdamW]]:
    """What is trained: the prefixes of its tensors' names, the module and its optimizer."""
    yield "model", "optimizer", rank.policy, rank.optimizer
    if rank.critic is not None:
        yield "critic", "critic_optimizer", rank.critic, rank.critic_optimizer


@torch.no_grad()
def load_optimizer(rank: "FsdpBackend", directory: str | Path) -> None:
    """Take up the optimizer's states alone, of a commit that another job made in the stage in which `rank` is."""
    layout = json.loads((Path(directory) / LAYOUT).read_text(encoding="utf-8"))
    with ShardReader(directory, int(layout["worldSize"])) as reader:
        for _, optimizer, module, adam in _trained(rank):
            for name, parameter in parameters(module):
                _copy_moments(reader, f"{optimizer}.", name, parameter, adam, rank)


def stage_of(directory: str | Path) -> str:
    """The stage in which a commit of the fsdp backend was made: `sft` or `rl`."""
    return str(json.loads((Path(directory) / LAYOUT).read_text(encoding="utf-8"))["stage"])


def _copy_moments(
    reader: ShardReader,
    prefix: str,
    name: str,
    parameter: nn.Parameter,
    adam: torch.optim.AdamW,
    rank: "FsdpBackend",
) -> None:
    """Nothing where the parameter was never stepped."""
    if f"{prefix}step.{name}" not in reader:
        return
    state = adam.state[parameter]
    state["step"] = reader.own(f"{prefix}step.{name}", 0).reshape(()).to(local(parameter).device)
    for key in MOMENTS:
        state[key] = torch.zeros_like(parameter)
        _copy(reader, f"{prefix}{key}.{name}", state[key], rank)


def _copy(reader: ShardReader, name: str, target: Tensor | nn.Parameter, rank: "FsdpBackend") -> None:
    if name not in reader:
        raise UserError(f"the commit has no tensor {name!r}: it was made with another model")
    shard = local(target)
    start, stop = own_rows(target.shape[0], rank.rank, rank.world_size) if rank.sharded else (0, target.shape[0])
    source = reader.rows(name, start, stop)
    if source.shape != shard.shape:
        raise UserError(
            f"the commit's tensor {name!r} has shape {tuple(source.shape)} where the model needs {tuple(shard.shape)}"
        )
    shard.copy_(source)
