"""Which rank does what, and holds what: coordinates as Megatron orders ranks, and tensor parallelism's slices of whole
tensors under canonical names (`export.mapping`). Pure."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from rljob_api.errors import UserError
from rljob_api.v1alpha1.trainer import Parallelism
from torch import Tensor

from rljob_trainer.export.mapping import Entry

FIELD = "spec.trainer.parallelism"


@dataclass(frozen=True, slots=True)
class Coordinates:
    """Coordinates of one rank."""

    tensor: int
    context: int
    data: int
    pipeline: int


@dataclass(frozen=True, slots=True)
class Layout:
    """Degrees of parallelism of a job. Ranks are numbered with the tensor coordinate fastest, then context, data and
    pipeline (megatron-core's order `tp-cp-ep-dp-pp`; expert ranks are runs of data-parallel ones)."""

    world: int
    tensor: int = 1
    pipeline: int = 1
    context: int = 1
    expert: int = 1
    sequence: bool = False

    @property
    def data(self) -> int:
        """Data-parallel size: shares that a batch is cut into."""
        return self.world // (self.tensor * self.pipeline * self.context)

    def coordinates(self, rank: int) -> Coordinates:
        """Where `rank` stands."""
        rest, tensor = divmod(rank, self.tensor)
        rest, context = divmod(rest, self.context)
        pipeline, data = divmod(rest, self.data)
        return Coordinates(tensor, context, data, pipeline)

    @property
    def row_multiple(self) -> int:
        """Each packed sequence is padded to a multiple of this: context parallelism cuts it in 2·CP equal chunks."""
        return 2 * self.context if self.context > 1 else 1

    @property
    def pack_multiple(self) -> int:
        """The whole pack is padded to a multiple of this: sequence parallelism scatters each context rank's part."""
        return self.row_multiple * (self.tensor if self.sequence else 1)


def layout_of(parallelism: Parallelism, world: int) -> Layout:
    """The layout of `world` ranks. Raises UserError, with the numbers, when they do not fit."""
    tensor, pipeline, context, expert = (
        parallelism.tensor, parallelism.pipeline, parallelism.context, parallelism.expert,
    )  # fmt: skip
    model = tensor * pipeline * context
    if world % model:
        raise UserError(
            f"{FIELD}: tensor × pipeline × context = {tensor} × {pipeline} × {context} = {model} does not divide the "
            f"{world} ranks"
        )
    data = world // model
    # Experts lie on runs of the ranks of one pipeline stage; with expert tensor parallelism equal to `tensor`, these
    # runs are made of context and data coordinates.
    if (data * context) % expert:
        raise UserError(
            f"{FIELD}.expert: {expert} does not divide the {data * context} ranks that hold the same layers and slices "
            f"(data × context = {data} × {context})"
        )
    if parallelism.sequence and tensor == 1:
        raise UserError(f"{FIELD}.sequence needs tensor > 1")
    return Layout(world, tensor, pipeline, context, expert, parallelism.sequence)


def check_model(layout: Layout, *, layers: int, heads: int, groups: int, experts: int) -> None:
    """Raise UserError where the model cannot be cut as the layout asks."""
    if heads % layout.tensor or groups % layout.tensor:
        raise UserError(
            f"{FIELD}.tensor: {layout.tensor} must divide the model's {heads} query heads and {groups} key/value heads"
        )
    if layers % layout.pipeline:
        raise UserError(f"{FIELD}.pipeline: {layout.pipeline} must divide the model's {layers} layers")
    if layout.expert > 1 and not experts:
        raise UserError(f"{FIELD}.expert: {layout.expert}, but the model has no experts")
    if experts % layout.expert:
        raise UserError(f"{FIELD}.expert: {layout.expert} must divide the model's {experts} experts")
    if experts and layout.tensor > 1 and not layout.sequence:
        raise UserError(f"{FIELD}.sequence: a model with experts needs it when tensor > 1")


def axis_of(entry: Entry) -> int | None:
    """The axis along which ranks share the tensor; None: each has all of it."""
    if entry.kind in ("qkv", "gate_up", "vocab"):
        return 0
    if entry.name.endswith(("linear_proj.weight", "linear_fc2.weight")):
        return 1
    return None


def slice_of(entry: Entry, tensor: Tensor, rank: int, ranks: int) -> Tensor:
    """Rank `rank`'s slice of a whole tensor. Gate and up projection are cut each for itself: a rank holds its rows of
    the one over its rows of the other."""
    axis = axis_of(entry)
    if axis is None or ranks == 1:
        return tensor
    if entry.kind == "gate_up":
        gate, up = tensor.chunk(2)
        return torch.cat([gate.chunk(ranks)[rank], up.chunk(ranks)[rank]])
    if tensor.shape[axis] % ranks:
        raise ValueError(f"{entry.name} of shape {tuple(tensor.shape)} cannot be cut in {ranks}")
    return tensor.chunk(ranks, dim=axis)[rank]


def join(entry: Entry, slices: Sequence[Tensor]) -> Tensor:
    """The whole tensor of all ranks' slices: the inverse of `slice_of`."""
    axis = axis_of(entry)
    if axis is None or len(slices) == 1:
        return slices[0]
    if entry.kind == "gate_up":
        halves = [part.chunk(2) for part in slices]
        return torch.cat([half[0] for half in halves] + [half[1] for half in halves])
    return torch.cat(list(slices), dim=axis)
