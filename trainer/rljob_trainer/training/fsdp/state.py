"""What a rank holds from step to step, as a commit has it: taken up again to the bit, for the same number of ranks."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rljob_api.errors import UserError
from torch import Tensor, nn

from rljob_trainer.checkpoint.tensors import ShardReader
from rljob_trainer.training.fsdp.critic import Critic
from rljob_trainer.training.fsdp.policy import Policy
from rljob_trainer.training.fsdp.shards import local, own_rows, parameters
from rljob_trainer.training.interface import Stage
from rljob_trainer.training.rank_state import read_about, restore_generators

FORMAT = 1
MOMENTS = ("exp_avg", "exp_avg_sq")


@dataclass
class Trained[M: nn.Module]:
    """A model and the optimizer that steps it."""

    module: M
    optimizer: torch.optim.AdamW


@dataclass
class FsdpState:
    """Models and optimizers of a rank, sharded or not."""

    policy: Trained[Policy]
    reference: Policy | None = None
    critic: Trained[Critic] | None = None

    def models(self) -> Iterator[nn.Module]:
        """Policy, reference and critic, as far as there are any."""
        yield self.policy.module
        if self.reference is not None:
            yield self.reference
        if self.critic is not None:
            yield self.critic.module

    def moments(self) -> Iterator[Tensor]:
        """The moments of all optimizers."""
        for trained in [self.policy] + ([self.critic] if self.critic is not None else []):
            for state in trained.optimizer.state.values():
                yield from (state[key] for key in MOMENTS if key in state)


def about(stage: Stage, world_size: int) -> dict[str, Any]:
    """Content of `trainer.json`."""
    return {"format": FORMAT, "stage": stage, "worldSize": world_size, "torch": torch.__version__}


def check_about(found: dict[str, Any], directory: str | Path) -> None:
    """Raise UserError when a commit has a format of another version."""
    if found["format"] != FORMAT:
        raise UserError(f"the commit {directory} has trainer format {found['format']}; this version reads {FORMAT}")


def stage_of(directory: str | Path) -> str:
    """The stage in which a commit of the fsdp backend was made: `sft` or `rl`."""
    return str(read_about(directory)["stage"])


def state_tensors(state: FsdpState) -> dict[str, Tensor]:
    """This rank's rows of weights, optimizer states and reference."""
    tensors: dict[str, Tensor] = {}
    for model, optimizer, trained in _trained(state):
        for name, parameter in parameters(trained.module):
            tensors[f"{model}.{name}"] = local(parameter)
            moments = trained.optimizer.state.get(parameter, {})
            for key in MOMENTS:
                if key in moments:
                    tensors[f"{optimizer}.{key}.{name}"] = local(moments[key])
            if "step" in moments:
                tensors[f"{optimizer}.step.{name}"] = local(torch.as_tensor(moments["step"])).reshape(1)
    if state.reference is not None:
        tensors |= {f"reference.{name}": local(parameter) for name, parameter in parameters(state.reference)}
    return tensors


@torch.no_grad()
def load_state(state: FsdpState, directory: str | Path, rank: int, world_size: int, device: torch.device) -> None:
    """Copy what a commit holds into `state`, which is of its stage, and restore the generators.

    With another number of ranks than it was written by, weights and optimizer are shared out anew (the numbers that
    follow may then differ in rounding), and the generators start from the seed.
    """
    written_by = int(read_about(directory)["worldSize"])
    with ShardReader(directory, written_by) as reader:
        surplus = reader.names("model.") - {f"model.{name}" for name, _ in parameters(state.policy.module)}
        if surplus:
            raise UserError(f"the model has no tensor {min(surplus)!r} of the commit: it was made with another model")
        rows = _Rows(reader, rank, world_size)
        for model, optimizer, trained in _trained(state):
            for name, parameter in parameters(trained.module):
                rows.copy(f"{model}.{name}", parameter)
                rows.copy_moments(f"{optimizer}.", name, parameter, trained.optimizer)
        if state.reference is not None:
            for name, parameter in parameters(state.reference):
                if f"reference.{name}" in reader:
                    rows.copy(f"reference.{name}", parameter)
        if written_by == world_size:
            restore_generators(reader, rank, device)


@torch.no_grad()
def load_optimizer(state: FsdpState, directory: str | Path, rank: int, world_size: int) -> None:
    """Take up the optimizer's states alone, of a commit that another job made in the stage of `state`."""
    with ShardReader(directory, int(read_about(directory)["worldSize"])) as reader:
        rows = _Rows(reader, rank, world_size)
        for _, optimizer, trained in _trained(state):
            for name, parameter in parameters(trained.module):
                rows.copy_moments(f"{optimizer}.", name, parameter, trained.optimizer)


def _trained(state: FsdpState) -> Iterator[tuple[str, str, Trained[Any]]]:
    """What is trained, after the prefixes of the names of its tensors and of its optimizer's."""
    yield "model", "optimizer", state.policy
    if state.critic is not None:
        yield "critic", "critic_optimizer", state.critic


@dataclass(frozen=True)
class _Rows:
    """A rank's rows of a commit's tensors."""

    reader: ShardReader
    rank: int
    world_size: int

    def copy(self, name: str, target: Tensor) -> None:
        """Copy this rank's rows into `target`, sharded or not."""
        if name not in self.reader:
            raise UserError(f"the commit has no tensor {name!r}: it was made with another model")
        shard = local(target)
        source = self.reader.rows(name, *own_rows(target.shape[0], self.rank, self.world_size))
        if source.shape != shard.shape:
            raise UserError(
                f"the commit's tensor {name!r} has shape {tuple(source.shape)} where the model needs "
                f"{tuple(shard.shape)}"
            )
        shard.copy_(source)

    def copy_moments(self, prefix: str, name: str, parameter: nn.Parameter, adam: torch.optim.AdamW) -> None:
        """What AdamW keeps for a parameter; nothing where it was never stepped."""
        if f"{prefix}step.{name}" not in self.reader:
            return
        state = adam.state[parameter]
        state["step"] = self.reader.own(f"{prefix}step.{name}", 0).reshape(()).to(local(parameter).device)
        for key in MOMENTS:
            state[key] = torch.zeros_like(parameter)
            self.copy(f"{prefix}{key}.{name}", state[key])
