"""Collectives with gradients, over process groups; the tensors may lie on a CPU (gloo) or a GPU (NCCL)."""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tensor: Tensor, group: Any) -> Tensor:
        ctx.group = group
        parts = [torch.empty_like(tensor) for _ in range(group.size())]
        dist.all_gather(parts, tensor.contiguous(), group=group)
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        # Every rank used the whole: this rank's part of the gradient is the sum of all their gradients there.
        total = grads[0].contiguous()
        dist.all_reduce(total, group=ctx.group)
        return total.chunk(ctx.group.size())[ctx.group.rank()], None


class _Sum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tensor: Tensor, group: Any) -> Tensor:
        result = tensor.clone()
        dist.all_reduce(result, group=group)
        return result

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        # All ranks go on with the same numbers and the same gradient: each keeps its own.
        return grads[0], None


def gather_rows(tensor: Tensor, group: Any) -> Tensor:
    """[n, …] of every rank, one after the other. The gradient is summed over ranks."""
    result: Tensor = _Gather.apply(tensor, group)
    return result


def sum_over(tensor: Tensor, group: Any) -> Tensor:
    """The sum over ranks, for numbers that all ranks then use in the same way: the gradient passes as it is."""
    result: Tensor = _Sum.apply(tensor, group)
    return result
