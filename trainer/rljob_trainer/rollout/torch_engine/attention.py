"""Attention over padded key/value slots.

`blocked` adds up the softmax in blocks of a fixed number of keys, in order. A block that lies wholly behind a row's
own length adds exact zeros, so the result does not depend on how far the longest sequence of the batch reaches: the
fixed-shape answer at the price of the blocks in use. The decomposition is that of online softmax (Milakov &
Gimelshein 2018) with the maximum taken first.
"""

import torch
from torch.nn import functional


def block_size(capacity: int) -> int:
    """Keys per block for sequences of up to `capacity` tokens: depends on the configuration alone."""
    return 32 if capacity <= 1024 else 128 if capacity <= 4096 else 512


def blocked_mask(
    query_positions: torch.Tensor, groups: int, repeats: int, keys: int, block: int, dtype: torch.dtype
) -> torch.Tensor:
    """Additive causal mask, −inf behind a query's position.

    query_positions [batch, queries] → [keys/block, batch·groups, repeats·queries, block]; `groups` is the number of
    key/value heads, `repeats` the query heads of each.
    """
    batch, queries = query_positions.shape
    offsets = torch.arange(keys, device=query_positions.device).view(keys // block, 1, 1, block)
    hidden = offsets > query_positions[None, :, :, None]
    mask = torch.zeros(hidden.shape, dtype=dtype, device=hidden.device).masked_fill_(hidden, float("-inf"))
    if groups == 1 and repeats == 1:
        return mask
    shape = (keys // block, batch, groups, repeats, queries, block)
    return mask[:, :, None, None].expand(shape).reshape(keys // block, batch * groups, repeats * queries, block)


def blocked(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor, scale: float) -> torch.Tensor:
    """q [b, m, d], k and v [b, ≥ keys, d], mask [keys/block, b, m, block] → [b, m, d]."""
    blocks, block = mask.shape[0], mask.shape[-1]
    if blocks == 1:
        scores = torch.baddbmm(mask[0], q, k[:, :block].transpose(1, 2), alpha=scale)
        scores.sub_(scores.amax(-1, keepdim=True)).exp_()
        return torch.bmm(scores, v[:, :block]).div_(scores.sum(-1, keepdim=True))
    scores = torch.empty_like(mask)
    for i in range(blocks):
        torch.baddbmm(mask[i], q, k[:, i * block : (i + 1) * block].transpose(1, 2), alpha=scale, out=scores[i])
    scores.sub_(scores.amax((0, 3), keepdim=True)).exp_()
    sums = scores.sum(-1, keepdim=True)
    total, output = sums[0], torch.bmm(scores[0], v[:, :block])
    for i in range(1, blocks):
        output.baddbmm_(scores[i], v[:, i * block : (i + 1) * block])
        total = total + sums[i]
    return output.div_(total)


def fused(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor, scale: float) -> torch.Tensor:
    """PyTorch's fused kernel, for accelerators.

    q [n, heads, m, d], k and v [n, kv heads, keys, d], mask bool [n, 1, m, keys].
    """
    gqa = q.shape[1] != k.shape[1]
    return functional.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scale, enable_gqa=gqa)
