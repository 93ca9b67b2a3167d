"""What `vocab` computes of a chunk's logits, as Triton kernels that read each logit from memory once.

A compiler's version of the same reads them two or three times (for the maximum, then for the sums): as long as the
product that makes them. The softmax is the online one (Milakov and Gimelshein, arXiv:1805.02867).
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

COLUMNS = 4096
"""Logits of a row that a program looks at together."""
WARPS = 8


@triton.jit
def _stats(  # type: ignore[no-untyped-def]
    logits, targets, scale, top_out, total_out, weighted_out, target_out, stride, columns, COLUMNS: tl.constexpr
):
    row = tl.program_id(0).to(tl.int64)
    source = logits + row * stride
    # A maximum for all, sums for each place in a block: those are added up once, at the end.
    top = -float("inf")
    total = tl.zeros((COLUMNS,), dtype=tl.float32)
    weighted = tl.zeros((COLUMNS,), dtype=tl.float32)
    place = tl.arange(0, COLUMNS)
    for first in range(0, columns, COLUMNS):
        inside = first + place < columns
        z = tl.load(source + first + place, mask=inside, other=-float("inf")).to(tl.float32) * scale
        highest = tl.maximum(top, tl.max(z, axis=0))
        # From the old maximum to the new one; before the first block there is nothing to be moved.
        shift = tl.where(first > 0, top - highest, 0.0)
        factor = tl.exp(shift)
        weighted = (weighted + shift * total) * factor
        total = total * factor
        lower = tl.where(inside, z - highest, 0.0)
        e = tl.where(inside, tl.exp(lower), 0.0)
        total += e
        weighted += e * lower
        top = highest
    target = tl.load(targets + row)
    mine = (target >= 0) & (target < columns)
    at_target = tl.load(source + target, mask=mine, other=0.0).to(tl.float32) * scale
    tl.store(top_out + row, top)
    tl.store(total_out + row, tl.sum(total, axis=0))
    tl.store(weighted_out + row, tl.sum(weighted, axis=0))
    tl.store(target_out + row, at_target)


@triton.jit
def _grad(  # type: ignore[no-untyped-def]
    logits, targets, log_total, entropy, grad, grad_entropy, scale, stride, columns,
    OF_ENTROPY: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    inside = column < columns
    source = logits + row * stride + column
    up = tl.load(grad + row)
    log_p = tl.load(source, mask=inside, other=0.0).to(tl.float32) * scale - tl.load(log_total + row)
    p = tl.exp(log_p)
    result = tl.where(column == tl.load(targets + row), up, 0.0) - p * up
    if OF_ENTROPY:
        result -= p * (log_p + tl.load(entropy + row)) * tl.load(grad_entropy + row)
    tl.store(source, (result * scale).to(logits.dtype.element_ty), mask=inside)


def stats(logits: Tensor, targets: Tensor, scale: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """See `vocab.chunk_stats`. logits: [n, v], rows contiguous."""
    rows, columns = logits.shape
    top, total, weighted, at_target = (
        torch.empty(rows, dtype=torch.float32, device=logits.device) for _ in range(4)
    )  # fmt: skip
    if rows:
        _stats[(rows,)](
            logits, targets, scale, top, total, weighted, at_target, logits.stride(0), columns, COLUMNS=COLUMNS,
            num_warps=WARPS,
        )  # fmt: skip
    return top, total, weighted, at_target


def grad_in_place(
    logits: Tensor, targets: Tensor, log_total: Tensor, entropy: Tensor, grad: Tensor, grad_entropy: Tensor | None,
    scale: float,
) -> Tensor:  # fmt: skip
    """See `vocab.chunk_grad`; the result takes the place of the logits. grad_entropy: None for zeros."""
    rows, columns = logits.shape
    if rows:
        _grad[(rows, triton.cdiv(columns, COLUMNS))](
            logits, targets, log_total, entropy, grad, grad if grad_entropy is None else grad_entropy, scale,
            logits.stride(0), columns, OF_ENTROPY=grad_entropy is not None, COLUMNS=COLUMNS, num_warps=WARPS,
        )  # fmt: skip
    return logits
