"""What a Megatron rank puts into a commit, and how it takes it up again: exactly, for the same layout of ranks.

Needs no Megatron.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from rljob_api.errors import UserError
from torch import Tensor

from rljob_trainer.checkpoint.tensors import ShardReader
from rljob_trainer.training.interface import Stage
from rljob_trainer.training.megatron.layout import FIELD, Layout
from rljob_trainer.training.rank_state import restore_generators

FORMAT = "megatron-1"
MOMENTS = ("exp_avg", "exp_avg_sq")


@dataclass(frozen=True)
class MasterWeight:
    """A float32 weight, or this rank's share of one, and what AdamW keeps for it, whichever AdamW: Megatron takes
    TransformerEngine's where it is installed."""

    name: str
    """Stable: the same in every run of the same layout."""
    weight: Tensor
    state: dict[str, Any]
    counter: dict[str, Any]
    """Where `step` is counted: PyTorch's AdamW does so for each weight, TransformerEngine's for each group."""

    @property
    def steps(self) -> Tensor | None:
        """[1] the steps so far; None before the first."""
        step = self.counter.get("step")
        return None if step is None else torch.as_tensor(step).reshape(1)

    def restore(self, steps: Tensor, moments: dict[str, Tensor]) -> None:
        """Take up what a commit holds. moments: `exp_avg` and `exp_avg_sq`."""
        count = steps.reshape(())
        self.counter["step"] = count.float() if self.counter is self.state else int(count)
        self.state.update({key: value.to(self.weight.device) for key, value in moments.items()})


@dataclass(frozen=True)
class MegatronState:
    """What a rank holds from step to step, as a commit has it."""

    stage: Stage
    weights: Sequence[MasterWeight]
    """The policy's; the optimizer's."""
    reference: Mapping[str, Tensor] | None
    """The frozen reference's parameters by canonical name."""


def about(layout: Layout, stage: Stage) -> dict[str, Any]:
    """Content of `trainer.json`."""
    return _layout(layout) | {"stage": stage, "torch": torch.__version__}


def check_about(found: Mapping[str, Any], layout: Layout, directory: str) -> None:
    """Raise UserError when a commit was written by another backend or layout."""
    if found["format"] != FORMAT:
        raise UserError(
            f"the commit {directory} was not written by the megatron backend of this version (format "
            f"{found['format']!r}, not {FORMAT!r})",
            hint="start from its Hugging Face export instead",
        )
    for key, value in _layout(layout).items():
        if found[key] != value:
            raise UserError(
                f"{FIELD}: the commit {directory} was written with {key} {found[key]}, this run has {value}",
                hint="resume with the same layout, or start from the commit's Hugging Face export",
            )


def state_tensors(state: MegatronState, layout: Layout, rank: int) -> dict[str, Tensor]:
    """Float32 weights and moments of this rank's share, and the reference where this rank keeps it."""
    tensors: dict[str, Tensor] = {}
    for master in state.weights:
        tensors[f"weight.{master.name}"] = master.weight.data
        for key in MOMENTS:
            if key in master.state:
                tensors[f"optimizer.{key}.{master.name}"] = master.state[key]
        if master.steps is not None:
            tensors[f"optimizer.step.{master.name}"] = master.steps
    if state.reference is not None and _reference_keeper(layout, rank) == rank:
        tensors |= {f"reference.{name}": parameter.data for name, parameter in state.reference.items()}
    return tensors


@torch.no_grad()
def load_state(state: MegatronState, directory: str, layout: Layout, rank: int, device: torch.device) -> None:
    """Copy what a commit holds into `state`, and restore the generators. The model still has to take the float32
    weights over."""
    with ShardReader(directory, layout.world) as reader:
        stepped = bool(reader.names("optimizer.step."))
        for master in state.weights:
            master.weight.data.copy_(reader.own(f"weight.{master.name}", rank))
            if stepped:
                master.restore(
                    reader.own(f"optimizer.step.{master.name}", rank),
                    {key: reader.own(f"optimizer.{key}.{master.name}", rank) for key in MOMENTS},
                )
        if state.reference is not None:
            source = _reference_keeper(layout, rank)
            for name, parameter in state.reference.items():
                parameter.copy_(reader.own(f"reference.{name}", source))
        restore_generators(reader, rank, device)


def _layout(layout: Layout) -> dict[str, Any]:
    return {
        "format": FORMAT,
        "worldSize": layout.world,
        "tensor": layout.tensor,
        "pipeline": layout.pipeline,
        "context": layout.context,
        "expert": layout.expert,
    }


def _reference_keeper(layout: Layout, rank: int) -> int:
    """The rank that writes the reference of `rank`: data- and context-parallel ranks hold the same one, unless they
    hold different experts of it."""
    if layout.expert > 1:
        return rank
    own = layout.coordinates(rank)
    return own.tensor + layout.tensor * layout.context * layout.data * own.pipeline
