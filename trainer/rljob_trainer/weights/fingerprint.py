"""A digest that a GPU computes in milliseconds: SHA-256 is for files, this is for every sync.

Each tensor's bytes, as 32-bit words, go through a mixer together with their position (splitmix64's finaliser: Steele,
Lea, Flood 2014) and are summed modulo 2⁶⁴; the sums, with names, dtypes and shapes, make one SHA-256. It finds lost,
stale, swapped and damaged tensors; it is no protection against somebody who forges weights.
The arithmetic is that of int64 with wrap-around, the same on CPU and GPU.
"""

import hashlib
from collections.abc import Mapping

import torch
from torch import Tensor

PREFIX = "fp1:"
CHUNK_WORDS = 1 << 24
_GOLDEN = 0x9E3779B97F4A7C15 - (1 << 64)
_MIX1 = 0xBF58476D1CE4E5B9 - (1 << 64)
_MIX2 = 0x94D049BB133111EB - (1 << 64)
Entry = tuple[str, tuple[int, ...], int]
"""dtype as torch names it, shape, sum."""


def tensor_sum(tensor: Tensor) -> Tensor:
    """The sum of one tensor, an int64 scalar on its device (nothing waits for the GPU)."""
    data = tensor.detach().contiguous().reshape(-1).view(torch.uint8)
    if data.numel() % 4:
        data = torch.cat([data, data.new_zeros(4 - data.numel() % 4)])
    words = data.view(torch.int32)
    total = torch.zeros((), dtype=torch.int64, device=words.device)
    for start in range(0, words.numel(), CHUNK_WORDS):
        part = words[start : start + CHUNK_WORDS]
        mixed = torch.arange(start + 1, start + 1 + part.numel(), dtype=torch.int64, device=part.device)
        mixed.mul_(_GOLDEN).add_(part)
        _mix(mixed, 30, _MIX1)
        _mix(mixed, 27, _MIX2)
        total += mixed.sum()
    return total


def entry(tensor: Tensor, total: int) -> Entry:
    """What the digest holds of a tensor whose `tensor_sum` is `total`."""
    return str(tensor.dtype).removeprefix("torch."), tuple(tensor.shape), total


def entries(tensors: Mapping[str, Tensor]) -> dict[str, Entry]:
    """Entries of all `tensors`, with one wait for the GPU."""
    sums = [tensor_sum(tensor) for tensor in tensors.values()]
    values = torch.stack(sums).tolist() if sums else []
    return {name: entry(tensor, total) for (name, tensor), total in zip(tensors.items(), values, strict=True)}


def digest(table: Mapping[str, Entry]) -> str:
    """The digest over all entries, whatever their order."""
    sha = hashlib.sha256()
    for name in sorted(table):
        dtype, shape, total = table[name]
        sha.update(f"{name}\0{dtype}\0{','.join(map(str, shape))}\0{total}\n".encode())
    return PREFIX + sha.hexdigest()


def differing(mine: Mapping[str, Entry], theirs: Mapping[str, Entry]) -> list[str]:
    """Names of tensors that are not the same in both, sorted."""
    return sorted(name for name in mine.keys() | theirs.keys() if mine.get(name) != theirs.get(name))


def _mix(values: Tensor, shift: int, factor: int) -> None:
    """values = (values ^ (values >> shift)) · factor, in place."""
    values.bitwise_xor_(values >> shift).mul_(factor)
