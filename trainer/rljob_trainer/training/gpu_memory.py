"""Memory of this process's GPU: what is free, what is given back, and tensors that wait in host memory meanwhile."""

from collections.abc import Callable, Iterable

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor


def gpu_memory() -> dict[str, float]:
    """Bytes of GPU memory that this process's tensors hold, and held at most; nothing without a GPU."""
    if not torch.cuda.is_available():
        return {}
    return {
        "gpu_memory": float(torch.cuda.memory_allocated()),
        "gpu_memory_peak": float(torch.cuda.max_memory_allocated()),
    }


def free_gpu_memory() -> int:
    """Bytes that are free on this process's GPU, whoever uses the rest; 0 without a GPU."""
    return int(torch.cuda.mem_get_info()[0]) if torch.cuda.is_available() else 0


def make_room(wanted: int) -> bool:
    """Give the GPU back what PyTorch keeps of tensors that are gone, unless `wanted` bytes are free anyway: taking it
    again costs time. Returns whether it was given back."""
    if not torch.cuda.is_available() or free_gpu_memory() >= wanted:
        return False
    torch.cuda.empty_cache()
    return True


class HostStash:
    """Moves tensors to (pinned) host memory and back. The tensors stay the same objects: their storage is emptied, so
    that optimizers, modules and FSDP's shards that hold them need not know. Reading one meanwhile is an error.

    `tensors` names them anew at each `put`, since an optimizer has states only after its first step. What is in host
    memory already stays where it is (unless `from_host`, to try this without a GPU).
    """

    def __init__(self, tensors: Callable[[], Iterable[Tensor]], *, from_host: bool = False) -> None:
        self._tensors, self._from_host = tensors, from_host
        self._away: list[tuple[torch.UntypedStorage, Tensor]] = []
        self._copies: dict[int, Tensor] = {}

    @property
    def away(self) -> bool:
        """Whether the tensors are in host memory."""
        return bool(self._away)

    @torch.no_grad()
    def put(self) -> None:
        """Move what is on an accelerator to the host. Nothing when it is there already."""
        if self.away:
            return
        storages = {}
        for tensor in self._tensors():
            storage = (tensor.to_local() if isinstance(tensor, DTensor) else tensor).untyped_storage()
            if storage.nbytes() and (self._from_host or storage.device.type != "cpu"):
                storages[storage._cdata] = storage
        copies = {}
        for key, storage in storages.items():
            source = torch.empty(0, dtype=torch.uint8, device=storage.device).set_(storage)
            copy = self._copies.get(key)
            if copy is None or copy.numel() != source.numel():
                copy = torch.empty(source.numel(), dtype=torch.uint8, pin_memory=source.is_cuda)
            copy.copy_(source, non_blocking=True)
            copies[key] = copy
            self._away.append((storage, copy))
        self._copies = copies
        if any(storage.device.type == "cuda" for storage in storages.values()):
            torch.cuda.synchronize()
        for storage, _ in self._away:
            storage.resize_(0)

    @torch.no_grad()
    def take(self) -> None:
        """Bring everything back. Nothing when it is here already."""
        for storage, copy in self._away:
            storage.resize_(copy.numel())
            target = torch.empty(0, dtype=torch.uint8, device=storage.device).set_(storage)
            target.copy_(copy, non_blocking=True)
        self._away = []
