"""Attention over documents that lie one after another in one row: each sees itself alone, and no padding is computed.

Registered with transformers as `rljob_packed`. Rows without document bounds go through transformers' own `sdpa`.
"""

import inspect
from functools import cache
from itertools import pairwise
from typing import Any

import torch
from rljob_api.errors import UserError
from torch import Tensor
from torch.nn import functional

NAME = "rljob_packed"


def use_packed_attention(model: Any) -> None:
    """Let the model's layers attend by `packed_attention`, unless they have a variable-length kernel of their own
    (flash attention takes the same bounds). Raises UserError for attention that would look across documents."""
    from transformers import AttentionInterface

    wanted = str(model.config._attn_implementation)
    if "flash" in wanted:
        return
    if wanted not in ("sdpa", NAME):
        raise UserError(
            f"spec.model.attentionImplementation: {wanted} would attend across packed sequences", hint="use sdpa"
        )
    AttentionInterface.register(NAME, packed_attention)
    model.set_attn_implementation(NAME)


def packed_attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    sliding_window: int | None = None,
    cu_seq_lens_q: Tensor | None = None,
    max_length_q: int = 0,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Causal attention within documents; the signature is that of transformers' attention functions.

    query: [1, H, T, D]. key, value: [1, Hkv, T, D]. cu_seq_lens_q: [documents + 1] int32, where documents begin, and
    T. max_length_q: the longest one. Returns [1, T, H, D] and None (no attention weights).

    Without bounds, `query` is [B, H, T, D] with padding on the right, and plain causal attention is right.
    """
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    if sliding_window is not None and query.shape[2] > sliding_window:
        raise NotImplementedError(f"{NAME}: the model attends within a window of {sliding_window} tokens")
    if cu_seq_lens_q is None:
        result: tuple[Tensor, None] = sdpa_attention_forward(
            module, query, key, value, attention_mask, scaling=scaling, **kwargs
        )
        return result
    if query.is_cuda and query.dtype != torch.float32:  # the kernel knows half precision alone
        return _varlen(query, key, value, cu_seq_lens_q, max_length_q, scaling), None
    bounds = cu_seq_lens_q.tolist()
    parts = [
        functional.scaled_dot_product_attention(
            query[:, :, start:stop], key[:, :, start:stop], value[:, :, start:stop],
            is_causal=True, scale=scaling, enable_gqa=query.shape[1] != key.shape[1],
        )
        for start, stop in pairwise(bounds)
    ]  # fmt: skip
    return torch.cat(parts, dim=2).transpose(1, 2).contiguous(), None


@cache
def _varlen_parameters() -> frozenset[str]:
    from torch.nn.attention.varlen import varlen_attn

    return frozenset(inspect.signature(varlen_attn).parameters)


def _varlen(query: Tensor, key: Tensor, value: Tensor, bounds: Tensor, longest: int, scaling: float | None) -> Tensor:
    """PyTorch's variable-length flash attention. [1, H, T, D] in, [1, T, H, D] out."""
    from torch.nn.attention.varlen import varlen_attn

    accepted = _varlen_parameters()  # they changed from torch 2.11 to 2.14
    options: dict[str, Any] = {"window_size": (-1, 0)} if "window_size" in accepted else {"is_causal": True}
    if "scale" in accepted:
        options["scale"] = scaling
    if query.shape[1] != key.shape[1] and "enable_gqa" in accepted:  # before torch 2.12 it is understood
        options["enable_gqa"] = True
    q, k, v = (tensor[0].transpose(0, 1).contiguous() for tensor in (query, key, value))
    output = varlen_attn(q, k, v, bounds, bounds, longest, longest, **options)
    assert isinstance(output, Tensor)
    return output.unsqueeze(0)
