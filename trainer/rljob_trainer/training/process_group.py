"""The process group of the ranks, and collectives that are no-ops without one."""

import socket
import sys
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


class Rendezvous:
    """The store where ranks meet. Rank 0 opens it on a free port *before* the others learn the port: no race for it."""

    def __init__(self, host: str, world_size: int, timeout_seconds: float) -> None:
        self.host = host
        self.store = dist.TCPStore(  # type: ignore[attr-defined]
            host,
            0,
            world_size,
            is_master=True,
            timeout=timedelta(seconds=timeout_seconds),
            wait_for_workers=False,
        )

    @property
    def port(self) -> int:
        """Port of the store."""
        return int(self.store.port)


def join(
    host: str,
    port: int,
    rank: int,
    world_size: int,
    timeout_seconds: float,
    *,
    device: torch.device,
    rendezvous: Rendezvous | None = None,
) -> None:
    """Join the process group: NCCL on GPUs (with gloo for CPU tensors), gloo otherwise. Every wait is bounded."""
    timeout = timedelta(seconds=timeout_seconds)
    store = rendezvous.store if rendezvous else _connect(host, port, world_size, timeout)
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    dist.init_process_group(backend, store=store, rank=rank, world_size=world_size, timeout=timeout)


def _connect(host: str, port: int, world_size: int, timeout: timedelta) -> Any:
    return dist.TCPStore(host, port, world_size, timeout=timeout)  # type: ignore[attr-defined]


def leave() -> None:
    """Leave the process group, if there is one."""
    if dist.is_initialized():
        dist.destroy_process_group()


_group: Any = None


def use_group(group: Any) -> None:
    """Let `all_reduce` run over the ranks of `group` (gloo) rather than over all: those that hold different shares of
    the batch, where others hold slices of the same model. None: all ranks again."""
    global _group
    _group = group


def all_reduce(values: Tensor, op: str = "sum") -> Tensor:
    """`values` (CPU) summed, or their maximum taken, over all ranks that hold a share of the batch; unchanged without
    a process group."""
    if dist.is_initialized():
        dist.all_reduce(values, dist.ReduceOp.SUM if op == "sum" else dist.ReduceOp.MAX, group=_group)
    return values


def barrier() -> None:
    """Wait for all ranks, within the group's time limit."""
    if dist.is_initialized():
        dist.all_reduce(torch.zeros(1))


def host_address() -> str:
    """The address under which other ranks reach this process: that of the Ray node when Ray runs, else loopback."""
    ray = sys.modules.get("ray")
    if ray is not None and ray.is_initialized():
        return str(ray.util.get_node_ip_address())
    return socket.gethostbyname("localhost")
