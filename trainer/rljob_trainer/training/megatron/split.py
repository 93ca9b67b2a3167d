"""Tensor parallelism's slices of whole tensors under canonical names (`export.mapping`), and the way back. Pure."""

from collections.abc import Sequence

import torch
from torch import Tensor

from rljob_trainer.export.mapping import Entry


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
