"""Context parallelism: who holds which tokens, and which keys each rank's queries see. Pure index arithmetic.

A sequence is cut into 2·C equal chunks; rank r of C holds chunks r and 2C−1−r. Under a causal mask the work of every
rank is then the same (the "zig-zag" or load-balanced split of Megatron and of Llama 3, arXiv:2407.21783, 3.3.2).
Keys and values are gathered whole (they are small with grouped queries); queries stay where they are.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Attend:
    """What one rank's attention kernel is called with."""

    keys: Tensor | None
    """[K] int64: rows of the gathered keys (rank after rank) to use, in order; None: the keys as they are."""
    cu_q: Tensor
    """[S+1] int32: bounds of the query runs."""
    cu_k: Tensor
    """[S+1] int32: bounds of the key runs. Each query run is the end of its key run (causal, aligned at the end)."""
    max_q: int
    max_k: int


def bounds(lengths: Sequence[int]) -> Tensor:
    """[S+1] int32: 0 and the running sums."""
    return torch.nn.functional.pad(torch.tensor(lengths, dtype=torch.int64).cumsum(0), (1, 0)).to(torch.int32)


def local_tokens(lengths: Sequence[int], rank: int, ranks: int) -> Tensor:
    """[T/C] int64: which tokens of the pack `rank` holds, in the order it holds them.

    lengths: of the pack's sequences, each a multiple of 2·ranks (any length with one rank).
    """
    if ranks == 1:
        return torch.arange(sum(lengths))
    parts: list[Tensor] = []
    start = 0
    for length in lengths:
        chunk, rest = divmod(length, 2 * ranks)
        if rest:
            raise ValueError(f"a sequence of {length} tokens cannot be cut into {2 * ranks} equal chunks")
        parts += [
            torch.arange(start + place * chunk, start + (place + 1) * chunk) for place in (rank, 2 * ranks - 1 - rank)
        ]
        start += length
    return torch.cat(parts)


def attend(lengths: Sequence[int], rank: int, ranks: int) -> Attend:
    """How `rank` attends: each of its chunks sees its sequence up to its own end."""
    if ranks == 1:
        cu = bounds(lengths)
        return Attend(None, cu, cu, max(lengths), max(lengths))
    total = sum(lengths)
    # Where each token of the pack lies once the ranks' parts are put one after the other.
    where = torch.empty(total, dtype=torch.int64)
    where[torch.cat([local_tokens(lengths, other, ranks) for other in range(ranks)])] = torch.arange(total)
    keys: list[Tensor] = []
    queries_per_run: list[int] = []
    keys_per_run: list[int] = []
    start = 0
    for length in lengths:
        chunk = length // (2 * ranks)
        for place in (rank, 2 * ranks - 1 - rank):
            seen = (place + 1) * chunk
            keys.append(where[start : start + seen])
            queries_per_run.append(chunk)
            keys_per_run.append(seen)
        start += length
    return Attend(
        torch.cat(keys), bounds(queries_per_run), bounds(keys_per_run), max(queries_per_run), max(keys_per_run)
    )
