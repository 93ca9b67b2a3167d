"""How single tensors differ between the two layouts: fused and interleaved projections, padded vocabularies."""

import torch
from torch import Tensor

from rljob_trainer.export.architecture import Architecture


def fuse_qkv(arch: Architecture, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Projections of queries, keys and values as Megatron's one, rows by query group: the queries of a group, then
    its key, then its value (megatron-core, `SelfAttention.get_query_key_value_tensors`).

    q: [heads * head_dim, …], k and v: [groups * head_dim, …]; weights have a second axis, biases none. Returns
    [(heads + 2 * groups) * head_dim, …]. A tensor-parallel rank's share is a run of its rows when `groups` is a
    multiple of the ranks.
    """
    rest = q.shape[1:]
    per_group = arch.heads // arch.groups
    parts = [
        q.reshape(arch.groups, per_group * arch.head_dim, *rest),
        k.reshape(arch.groups, arch.head_dim, *rest),
        v.reshape(arch.groups, arch.head_dim, *rest),
    ]
    return torch.cat(parts, dim=1).reshape(arch.qkv_rows, *rest)


def split_qkv(arch: Architecture, qkv: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The inverse of `fuse_qkv`."""
    rest = qkv.shape[1:]
    per_group = arch.heads // arch.groups
    grouped = qkv.reshape(arch.groups, (per_group + 2) * arch.head_dim, *rest)
    q, k, v = torch.split(grouped, [per_group * arch.head_dim, arch.head_dim, arch.head_dim], dim=1)
    return q.reshape(-1, *rest), k.reshape(-1, *rest), v.reshape(-1, *rest)


def fuse_gate_up(gate: Tensor, up: Tensor) -> Tensor:
    """Gate [ffn, hidden] over up [ffn, hidden]: the rows of Megatron's fc1 with a gated linear unit. A tensor-parallel
    rank holds its rows of the gate over its rows of the up projection, not a run of the result."""
    return torch.cat([gate, up])


def split_gate_up(fc1: Tensor) -> tuple[Tensor, Tensor]:
    """The inverse of `fuse_gate_up`."""
    gate, up = fc1.chunk(2)
    return gate, up


def padded_vocab(vocab: int, divisible_by: int = 128, tensor_parallel: int = 1) -> int:
    """Rows of Megatron's embedding: `vocab` rounded up to a multiple of `make-vocab-size-divisible-by` times the
    tensor-parallel size."""
    multiple = divisible_by * tensor_parallel
    return -(-vocab // multiple) * multiple


def resize_rows(tensor: Tensor, rows: int) -> Tensor:
    """The first `rows` rows, or the tensor with rows of zeros after its own."""
    if tensor.shape[0] >= rows:
        return tensor[:rows]
    return torch.cat([tensor, tensor.new_zeros(rows - tensor.shape[0], *tensor.shape[1:])])
