"""Core attention for Megatron's layers: variable-length flash attention of PyTorch over packed sequences.

Takes the place of TransformerEngine's, and of Megatron's unfused one, which would write out the scores.
"""

import inspect
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from rljob_trainer.training.megatron.collectives import gather_rows
from rljob_trainer.training.megatron.rope import rotate
from rljob_trainer.training.megatron.zigzag import Attend

try:
    from megatron.core.packed_seq_params import PackedSeqParams
except ImportError:  # The attention itself is tested without Megatron.
    PackedSeqParams = object


@dataclass
class Packed(PackedSeqParams):
    """What travels with a pack through Megatron's layers. Angles go with it, so that one computation serves all
    layers and context-parallel ranks rotate by each token's true position."""

    attend: Attend | None = None
    cos: Tensor | None = None
    sin: Tensor | None = None
    context_group: Any = None
    """Context-parallel process group; None for one rank."""

    def __post_init__(self) -> None:
        self.qkv_format = "thd"


@cache
def _varlen() -> tuple[Any, dict[str, Any]]:
    """PyTorch's kernel and how this version of it is told of causal attention and grouped queries."""
    from torch.nn.attention.varlen import varlen_attn

    known = inspect.signature(varlen_attn).parameters
    options: dict[str, Any] = {"is_causal": True} if "is_causal" in known else {"window_size": (-1, 0)}
    if "enable_gqa" in known:
        options["enable_gqa"] = True
    return varlen_attn, options


def _reference(query: Tensor, key: Tensor, value: Tensor, plan: Attend) -> Tensor:
    """The same on a CPU, run by run."""
    out: list[Tensor] = []
    for run in range(len(plan.cu_q) - 1):
        q = query[int(plan.cu_q[run]) : int(plan.cu_q[run + 1])].transpose(0, 1)
        k = key[int(plan.cu_k[run]) : int(plan.cu_k[run + 1])].transpose(0, 1)
        v = value[int(plan.cu_k[run]) : int(plan.cu_k[run + 1])].transpose(0, 1)
        allowed = torch.ones(q.shape[1], k.shape[1], dtype=torch.bool).tril(k.shape[1] - q.shape[1])
        out.append(
            nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=allowed, enable_gqa=True).transpose(0, 1)
        )
    return torch.cat(out)


def packed_attention(query: Tensor, key: Tensor, value: Tensor, plan: Attend, group: Any = None) -> Tensor:
    """Causal attention within each run of `plan`.

    query: [T, heads, D]; key, value: [T, groups, D], this rank's tokens. group: context-parallel ranks, whose keys and
    values are gathered. Returns [T, heads, D].
    """
    if group is not None:
        assert plan.keys is not None
        both = gather_rows(torch.cat([key, value], dim=-1), group).index_select(0, plan.keys)
        width = key.shape[-1]
        key, value = both[..., :width], both[..., width:]
    if not query.is_cuda:
        return _reference(query, key, value, plan)
    kernel, options = _varlen()
    result: Tensor = kernel(
        query.contiguous(), key.contiguous(), value.contiguous(), plan.cu_q, plan.cu_k, plan.max_q, plan.max_k,
        **options,
    )  # fmt: skip
    return result


@cache
def _fused_rotate() -> Any:
    return torch.compile(rotate, dynamic=True)


def turned(query: Tensor, key: Tensor, packed: Packed) -> tuple[Tensor, Tensor]:
    """[T, heads, D] queries and [T, groups, D] keys, rotated by each token's place in its sequence."""
    assert packed.cos is not None
    assert packed.sin is not None
    turn = _fused_rotate() if query.is_cuda else rotate
    return turn(query, packed.cos, packed.sin), turn(key, packed.cos, packed.sin)


class VarlenAttention(nn.Module):
    """Rotates queries and keys, then attends. Has the constructor and call of Megatron's core attentions."""

    def __init__(
        self,
        config: Any,
        layer_number: int,
        attn_mask_type: Any,
        attention_type: str,
        attention_dropout: float | None = None,
        softmax_scale: float | None = None,
        cp_comm_type: str | None = None,
        pg_collection: Any = None,
        **_: Any,
    ) -> None:
        super().__init__()
        self.config = config

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None = None,
        attn_mask_type: Any = None,
        attention_bias: Tensor | None = None,
        packed_seq_params: Packed | None = None,
    ) -> Tensor:
        """query: [T, heads, D]; key, value: [T, groups, D], of this rank's tokens and heads. Returns [T, heads·D]."""
        packed = packed_seq_params
        assert packed is not None
        assert packed.attend is not None
        query, key = turned(query, key, packed)
        return packed_attention(query, key, value, packed.attend, packed.context_group).flatten(1)
