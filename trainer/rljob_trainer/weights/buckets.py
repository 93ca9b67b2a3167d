"""Weights in buckets: many small tensors travel as few large ones. Planned from names and shapes alone."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

ITEM_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2, "int32": 4, "int64": 8, "float64": 8, "int8": 1, "uint8": 1}
BUCKET_BYTES = 512 * 1024**2


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """One tensor of the model under its Hugging Face name."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    """As torch names it, without the module."""

    @property
    def nbytes(self) -> int:
        """Its size."""
        return math.prod(self.shape) * ITEM_BYTES[self.dtype]


@dataclass(frozen=True, slots=True)
class Bucket:
    """Tensors that travel together, one behind the other in this order."""

    tensors: tuple[TensorInfo, ...]

    @property
    def nbytes(self) -> int:
        """Its size."""
        return sum(tensor.nbytes for tensor in self.tensors)

    @property
    def names(self) -> tuple[str, ...]:
        """Names of its tensors."""
        return tuple(tensor.name for tensor in self.tensors)


def plan_buckets(tensors: Sequence[TensorInfo], max_bytes: int = BUCKET_BYTES) -> list[Bucket]:
    """Cut `tensors`, in their order, into buckets of one dtype and at most `max_bytes` each; a larger tensor has a
    bucket to itself. Every tensor is in exactly one bucket.

    Raises ValueError for a size below 1 or two tensors of one name.
    """
    if max_bytes < 1:
        raise ValueError(f"buckets of {max_bytes} bytes")
    if len({tensor.name for tensor in tensors}) < len(tensors):
        raise ValueError("two tensors have the same name")
    buckets: list[Bucket] = []
    current: list[TensorInfo] = []
    size = 0
    for tensor in tensors:
        if current and (size + tensor.nbytes > max_bytes or tensor.dtype != current[0].dtype):
            buckets.append(Bucket(tuple(current)))
            current, size = [], 0
        current.append(tensor)
        size += tensor.nbytes
    if current:
        buckets.append(Bucket(tuple(current)))
    return buckets
