"""Sums of `fingerprint` as one Triton kernel for all tensors, which reads each word once.

By torch's own operations a word is read and written a dozen times, and a tensor in parts takes a dozen launches.
"""

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

WORDS = 1024
"""Words that a program looks at together."""
PROGRAMS = 256
"""Programs for each tensor."""


@triton.jit  # type: ignore[untyped-decorator]
def _sums(  # type: ignore[no-untyped-def]
    pointers, counts, columns, firsts, aparts, out,
    GOLDEN: tl.constexpr, MIX1: tl.constexpr, MIX2: tl.constexpr, WORDS: tl.constexpr, PROGRAMS: tl.constexpr,
):  # fmt: skip
    tensor = tl.program_id(0)
    source = tl.load(pointers + tensor).to(tl.pointer_type(tl.int32))
    count, width = tl.load(counts + tensor), tl.load(columns + tensor)
    before, apart = tl.load(firsts + tensor) + 1, tl.load(aparts + tensor)
    begin = tl.program_id(1).to(tl.int64) * WORDS
    total = tl.zeros((WORDS,), dtype=tl.int64)
    for start in range(begin, count, WORDS * PROGRAMS):
        at = start + tl.arange(0, WORDS)
        word = tl.load(source + at, mask=at < count, other=0).to(tl.int64)
        row = at // width
        mixed = (before + row * apart + (at - row * width)) * GOLDEN + word
        mixed = (mixed ^ (mixed >> 30)) * MIX1
        mixed = (mixed ^ (mixed >> 27)) * MIX2
        total += tl.where(at < count, mixed, 0)
    if begin < count:
        tl.atomic_add(out + tensor, tl.sum(total, axis=0))


def sums(blocks: Sequence[tuple[Tensor, int, int]], golden: int, mix: tuple[int, int]) -> Tensor:
    """Of each block its sum, [blocks] int64. A block: words [rows, columns] int32 in one piece, the place of the first
    (from 0), how far its rows lie apart. All on one device."""
    device = blocks[0][0].device
    about = [
        [words.data_ptr() for words, _, _ in blocks],
        [words.numel() for words, _, _ in blocks],
        [max(1, words.shape[1]) for words, _, _ in blocks],
        [first for _, first, _ in blocks],
        [apart for _, _, apart in blocks],
    ]
    table = torch.tensor(about, dtype=torch.int64).to(device)
    out = torch.zeros(len(blocks), dtype=torch.int64, device=device)
    _sums[(len(blocks), PROGRAMS)](
        *table.unbind(), out, GOLDEN=golden, MIX1=mix[0], MIX2=mix[1], WORDS=WORDS, PROGRAMS=PROGRAMS
    )
    return out
