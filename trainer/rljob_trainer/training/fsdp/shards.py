"""A model's shards: how FSDP2 lays parameters out, gathering them, and reading them back for another world size."""

from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed as dist
from rljob_api.v1alpha1.trainer import FsdpSpec
from torch import Tensor, nn
from torch.distributed.tensor import DTensor


def shard_policy(policy: nn.Module, layers: nn.ModuleList, spec: FsdpSpec, dtype: torch.dtype, device: str) -> None:
    """Shard `policy` over all ranks in place (FSDP2): each transformer block by itself, the rest with the root.

    Parameters stay float32 (master weights, what the optimizer steps); compute and all-gathers are in `dtype`,
    gradients are reduced in float32. Gradients are **summed** over ranks, not averaged: losses are already
    normalised over the global batch.
    """
    from torch.distributed.fsdp import CPUOffloadPolicy, FSDPModule, MixedPrecisionPolicy, OffloadPolicy, fully_shard

    mesh = dist.device_mesh.init_device_mesh(device, (dist.get_world_size(),))
    options: dict[str, Any] = {
        "mesh": mesh,
        "reshard_after_forward": spec.reshard_after_forward,
        "mp_policy": MixedPrecisionPolicy(param_dtype=dtype, reduce_dtype=torch.float32),
        "offload_policy": CPUOffloadPolicy() if spec.cpu_offload and device == "cuda" else OffloadPolicy(),
    }
    for layer in layers:
        fully_shard(layer, **options)
    fully_shard(policy, **options)
    for module in policy.modules():
        if isinstance(module, FSDPModule):
            module.set_gradient_divide_factor(1.0)
            module.set_force_sum_reduction_for_comms(True)  # gloo has no scaled sum


def recompute_blocks(model: Any, on: bool = True) -> None:
    """Recompute the activations of each block of a transformers model in the backward pass (non-reentrant), or keep
    them."""
    if on:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    else:
        model.gradient_checkpointing_disable()


def local(tensor: Tensor) -> Tensor:
    """This rank's rows of a sharded tensor, sharing its memory; the tensor itself when it is not sharded."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def full(tensor: Tensor) -> Tensor:
    """The whole of a sharded tensor, on every rank (collective); the tensor itself when it is not sharded."""
    if not isinstance(tensor, DTensor):
        return tensor
    return local(tensor) if tensor.device_mesh.size() == 1 else tensor.full_tensor()


def whole(parameter: Tensor, dtype: torch.dtype) -> Tensor:
    """The whole of a parameter in `dtype`, without a gradient, on every rank (collective). Cast before it travels."""
    with torch.no_grad():  # and, on one rank, before DTensor's dispatcher, which takes longer than a small copy
        if isinstance(parameter, DTensor) and parameter.device_mesh.size() == 1:
            return local(parameter).to(dtype)
        return full(parameter.detach().to(dtype))


def parameters(policy: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """Names as Hugging Face has them, and parameters (tied ones once), sorted by name: the same order on all ranks."""
    named = {name.removeprefix("hf."): parameter for name, parameter in policy.named_parameters()}
    yield from sorted(named.items())


def own_rows(rows: int, rank: int, world_size: int) -> tuple[int, int]:
    """Rows of a rank as FSDP2 shares them out: even chunks, rounded up; the last ranks may get fewer, or none."""
    chunk = -(-rows // world_size)
    return min(rank * chunk, rows), min((rank + 1) * chunk, rows)
