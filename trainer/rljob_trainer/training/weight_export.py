"""Weights out of a training rank: into shared GPU memory, over NCCL, or to disk; the same buckets each time."""

from collections import deque
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from rljob_trainer.weights.buckets import BUCKET_BYTES, Bucket, TensorInfo, plan_buckets
from rljob_trainer.weights.fingerprint import Entry, digest, tensor_sums


class WeightSource(Protocol):
    """A rank of any backend."""

    def weights_layout(self) -> list[TensorInfo]:
        """What there is, in one order on all ranks."""
        ...

    def gather_weights(self, names: Sequence[str]) -> Iterator[tuple[str, Tensor]]:
        """The named tensors, whole, on this rank's device. Collective."""
        ...


class WeightExporter:
    """Exports bucket after bucket; `finish` gives digest and table of all since the last one."""

    def __init__(self, source: WeightSource, rank: int) -> None:
        self._source, self._rank = source, rank
        self._sums: list[tuple[Sequence[TensorInfo], Tensor]] = []
        # What an engine reads is kept until two buckets later, when its reading is known to be over.
        self._shared: deque[Tensor] = deque(maxlen=2)
        self._groups: dict[str, Any] = {}

    def plan(self, max_bytes: int = BUCKET_BYTES) -> list[Bucket]:
        """All weights in buckets."""
        return plan_buckets(self._source.weights_layout(), max_bytes)

    def share(self, bucket: Bucket) -> bytes:
        """A bucket as SGLang's `flattened_bucket`: CUDA IPC handle and metadata. Collective."""
        from sglang.srt.utils import MultiprocessingSerializer
        from sglang.srt.utils.patch_torch import monkey_patch_torch_reductions
        from sglang.srt.weight_sync.tensor_bucket import FlattenedTensorMetadata

        monkey_patch_torch_reductions()  # devices by UUID: the receiver may see other device numbers
        flat, values = self._flatten(bucket)
        metadata, start = [], 0
        for tensor in bucket.tensors:
            metadata.append(
                FlattenedTensorMetadata(
                    name=tensor.name,
                    shape=torch.Size(tensor.shape),
                    dtype=getattr(torch, tensor.dtype),
                    start_idx=start,
                    end_idx=start + tensor.nbytes,
                    numel=tensor.nbytes,
                )
            )
            start += tensor.nbytes
        torch.cuda.current_stream().synchronize()
        self._shared.append(flat)
        self._sum(bucket.tensors, values)  # while the engine reads
        payload: bytes = MultiprocessingSerializer.serialize({"flattened_tensor": flat, "metadata": metadata})
        return payload

    def address(self) -> tuple[str, int]:
        """Host and a free port for a group of weights."""
        import socket

        from rljob_trainer.training.process_group import host_address

        with socket.socket() as probe:
            probe.bind(("", 0))
            return host_address(), int(probe.getsockname()[1])

    def join_group(self, port: int, world_size: int, name: str) -> None:
        """Make the NCCL group `name`, of which this is rank 0; the engines' GPUs are the others."""
        from sglang.srt.utils import init_custom_process_group

        for old in list(self._groups):
            torch.distributed.destroy_process_group(self._groups.pop(old))
        self._groups[name] = init_custom_process_group(
            backend="nccl", init_method=f"tcp://0.0.0.0:{port}", world_size=world_size, rank=0, group_name=name
        )

    def broadcast(self, bucket: Bucket, group: str) -> None:
        """Send a bucket to the members of `group`. Collective over the training ranks; rank 0 sends."""
        flat, values = self._flatten(bucket)
        if self._rank == 0:
            torch.distributed.broadcast(flat, src=0, group=self._groups[group])
            torch.cuda.current_stream().synchronize()
            self._sum(bucket.tensors, values)

    def write(self, bucket: Bucket, file: str) -> None:
        """Write a bucket as a safetensors file (rank 0). Collective."""
        from safetensors.torch import save_file

        tensors = {}
        for tensor, (_, value) in zip(bucket.tensors, self._source.gather_weights(bucket.names), strict=True):
            self._sum([tensor], [value])
            if self._rank == 0:
                tensors[tensor.name] = value.cpu().contiguous()
        if self._rank == 0:
            Path(file).parent.mkdir(parents=True, exist_ok=True)
            save_file(tensors, file, metadata={"format": "pt"})

    def finish(self) -> tuple[str, dict[str, Entry]]:
        """Digest and table of what was exported, and the end of it."""
        sums, self._sums = self._sums, []
        infos = [info for some, _ in sums for info in some]
        values = torch.cat([totals for _, totals in sums]).tolist() if sums else []
        table = {info.name: (info.dtype, info.shape, int(value)) for info, value in zip(infos, values, strict=True)}
        if self._shared:
            self._shared.clear()
            torch.cuda.ipc_collect()  # type: ignore[no-untyped-call]
        return digest(table), table

    def _sum(self, infos: Sequence[TensorInfo], values: Sequence[Tensor]) -> None:
        """Take tensors that were exported into the digest."""
        if self._rank == 0:
            self._sums.append((infos, tensor_sums(values)))

    def _flatten(self, bucket: Bucket) -> tuple[Tensor, list[Tensor]]:
        """The bucket's tensors one behind the other, uint8 [bucket.nbytes] on this rank's device, and one by one."""
        values = [value for _, value in self._source.gather_weights(bucket.names)]
        if len(values) != len(bucket.tensors) or not values:
            raise ValueError(f"{len(values)} tensors for a bucket of {len(bucket.tensors)}")
        return torch.cat([value.contiguous().reshape(-1).view(torch.uint8) for value in values]), values
