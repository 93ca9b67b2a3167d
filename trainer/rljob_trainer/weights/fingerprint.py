"""A digest that a GPU computes in milliseconds: SHA-256 is for files, this is for every sync.

Each tensor's bytes, as 32-bit words, go through a mixer together with their position (splitmix64's finaliser: Steele,
Lea, Flood 2014) and are summed modulo 2⁶⁴; the sums, with names, dtypes and shapes, make one SHA-256. It finds lost,
stale, swapped and damaged tensors; it is no protection against somebody who forges weights.
The arithmetic is that of int64 with wrap-around, the same on CPU and GPU.
"""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from itertools import accumulate
from math import prod

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
    words = _words(tensor)
    total = torch.zeros((), dtype=torch.int64, device=words.device)
    for start in range(0, words.numel(), CHUNK_WORDS):
        part = words[start : start + CHUNK_WORDS]
        places = torch.arange(start + 1, start + 1 + part.numel(), dtype=torch.int64, device=part.device)
        total += _mixed(places, part).sum()
    return total


def tensor_sums(tensors: Sequence[Tensor]) -> Tensor:
    """`tensor_sum` of each, [number of tensors] int64. Small ones are summed many at a time: a model has hundreds."""
    if not tensors:
        return torch.zeros(0, dtype=torch.int64)
    words = [_words(tensor) for tensor in tensors]
    if tensors[0].is_cuda:
        return _by_kernel([(part.reshape(1, -1), 0, 0) for part in words])
    found = []
    for batch in _batches([part.numel() for part in words]):
        first = words[batch.start]
        if len(batch) == 1:
            found.append(tensor_sum(first).reshape(1))
            continue
        bounds = torch.tensor(list(accumulate((words[at].numel() for at in batch), initial=0)), dtype=torch.int64).to(
            first.device
        )
        together = torch.cat([words[at] for at in batch])
        count = together.numel()
        before = torch.repeat_interleave(bounds[:-1], bounds.diff(), output_size=count)
        places = torch.arange(1, count + 1, dtype=torch.int64, device=first.device).sub_(before)
        # Differences of running sums are exact: everything is modulo 2⁶⁴.
        running = torch.zeros(count + 1, dtype=torch.int64, device=first.device)
        torch.cumsum(_mixed(places, together), 0, out=running[1:])
        found.append(running[bounds].diff())
    return torch.cat(found)


def block_sum(block: Tensor, whole: Sequence[int], start: Sequence[int]) -> Tensor:
    """What a block of a tensor of shape `whole` adds to that tensor's `tensor_sum`, an int64 scalar: those of blocks
    that cover it, none twice, add up to it modulo 2⁶⁴. `start` is where the block begins.

    Blocks are rows, or columns of a matrix. Raises ValueError for one that begins or ends within a word of 32 bits.
    """
    words, first, apart = _words_of_block(block, whole, start)
    total = torch.zeros((), dtype=torch.int64, device=block.device)
    rows = max(1, CHUNK_WORDS // max(1, words.shape[1]))
    for top in range(0, words.shape[0], rows):
        for left in range(0, words.shape[1], CHUNK_WORDS):
            part = words[top : top + rows, left : left + CHUNK_WORDS]
            across = torch.arange(first + left + 1, first + left + 1 + part.shape[1], device=block.device)
            down = torch.arange(top, top + part.shape[0], device=block.device) * apart
            total += _mixed(down[:, None] + across, part).sum()
    return total


def block_sums(blocks: Sequence[tuple[Tensor, Sequence[int], Sequence[int]]]) -> Tensor:
    """`block_sum` of each (block, whole, start), [number of blocks] int64."""
    if not blocks:
        return torch.zeros(0, dtype=torch.int64)
    if blocks[0][0].is_cuda:
        return _by_kernel([_words_of_block(*block) for block in blocks])
    return torch.stack([block_sum(*block) for block in blocks])


def entry(tensor: Tensor, total: int) -> Entry:
    """What the digest holds of a tensor whose `tensor_sum` is `total`."""
    return str(tensor.dtype).removeprefix("torch."), tuple(tensor.shape), total


def entries(tensors: Mapping[str, Tensor]) -> dict[str, Entry]:
    """Entries of all `tensors`, with one wait for the GPU."""
    values = tensor_sums(list(tensors.values())).tolist()
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


def _by_kernel(blocks: Sequence[tuple[Tensor, int, int]]) -> Tensor:
    from rljob_trainer.weights.fingerprint_kernel import sums

    return sums(blocks, _GOLDEN, (_MIX1, _MIX2))


def _words(tensor: Tensor) -> Tensor:
    """Its bytes as int32, filled up with zeros."""
    data = tensor.detach().contiguous().reshape(-1).view(torch.uint8)
    if data.numel() % 4 or data.storage_offset() % 4:
        data = torch.cat([data, data.new_zeros(-data.numel() % 4)])
    return data.view(torch.int32)


def _words_of_block(block: Tensor, whole: Sequence[int], start: Sequence[int]) -> tuple[Tensor, int, int]:
    """A block's words as a matrix, the place of the first in the whole (from 0), how far its rows lie apart there."""
    size, shape = block.element_size(), tuple(block.shape)
    if shape[1:] == tuple(whole[1:]):  # rows are one run of words
        begin = start[0] * prod(shape[1:]) * size if start else 0
        end = begin + block.numel() * size
        if begin % 4 == 0 and (end % 4 == 0 or end == prod(whole) * size):
            return _words(block).reshape(1, -1), begin // 4, 0
    elif len(shape) == 2 and shape[0] == whole[0] and not any(n * size % 4 for n in (whole[1], shape[1], start[1])):
        return _words(block).view(shape[0], -1), start[1] * size // 4, whole[1] * size // 4
    raise ValueError(
        f"a block of {shape} at {tuple(start)} of {tuple(whole)} is neither rows nor columns of whole words"
    )


def _batches(sizes: Sequence[int]) -> Iterator[range]:
    """Neighbours of at most CHUNK_WORDS together; a larger one is by itself."""
    start = total = 0
    for at, size in enumerate(sizes):
        if at > start and total + size > CHUNK_WORDS:
            yield range(start, at)
            start, total = at, 0
        total += size
    yield range(start, len(sizes))


def _mixed(places: Tensor, words: Tensor) -> Tensor:
    """Each word with its place (from 1), mixed; `places` is overwritten."""
    places.mul_(_GOLDEN).add_(words)
    _mix(places, 30, _MIX1)
    _mix(places, 27, _MIX2)
    return places


def _mix(values: Tensor, shift: int, factor: int) -> None:
    """values = (values ^ (values >> shift)) · factor, in place."""
    values.bitwise_xor_(values >> shift).mul_(factor)
