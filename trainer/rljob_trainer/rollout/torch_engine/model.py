"""The forward pass: one token for every decoding slot and a chunk of tokens for a few others, in one go."""

from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import functional

from rljob_trainer.rollout.torch_engine import attention
from rljob_trainer.rollout.torch_engine.architecture import Architecture, rotary_table
from rljob_trainer.rollout.torch_engine.linear import Rows
from rljob_trainer.rollout.torch_engine.weights import ServedWeights


class KVCache:
    """Keys and values of all slots: one tensor [layers, 2, slots + 1, kv heads, capacity, head_dim].

    `capacity` is the longest sequence rounded up to whole attention blocks. The last slot takes the writes of padding.
    """

    def __init__(
        self, architecture: Architecture, slots: int, max_length: int, device: torch.device, dtype: torch.dtype
    ) -> None:
        self.block = attention.block_size(max_length)
        self.capacity = -(-max_length // self.block) * self.block
        self.heads, self.padding_slot = architecture.num_kv_heads, slots
        shape = (architecture.num_layers, 2, slots + 1, self.heads, self.capacity, architecture.head_dim)
        self.data = torch.zeros(shape, device=device, dtype=dtype)
        flat = self.data.view(*shape[:2], (slots + 1) * self.heads, self.capacity, architecture.head_dim)
        self.keys, self.values = [layer[0] for layer in flat], [layer[1] for layer in flat]
        self.rows = list(self.data.view(shape[0], -1, architecture.head_dim))
        """Per layer: keys, then values, as rows [2·slots·kv heads·capacity, head_dim]."""
        offsets = torch.arange(2, device=device)[:, None] * ((slots + 1) * self.heads) + torch.arange(
            self.heads, device=device
        )
        self._offsets = offsets.view(-1) * self.capacity

    def write_index(self, slots: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        """slots, positions [n] → where in `rows` their keys and values go, [n, 2·kv heads]."""
        return (slots * (self.heads * self.capacity) + positions)[:, None] + self._offsets

    def span(self, longest: int) -> int:
        """Keys to attend to when the longest sequence has `longest` tokens: whole blocks."""
        return min(-(-longest // self.block) * self.block, self.capacity)

    def save(self, slot: int, length: int) -> torch.Tensor:
        """A copy of one slot's first `length` positions."""
        return self.data[:, :, slot, :, :length].clone()

    def restore(self, slot: int, saved: torch.Tensor) -> None:
        """Put a saved copy into a slot."""
        self.data[:, :, slot, :, : saved.shape[3]] = saved

    def move(self, source: int, target: int, length: int) -> None:
        """Copy one slot's first `length` positions to another."""
        self.data[:, :, target, :, :length] = self.data[:, :, source, :, :length]


@dataclass(frozen=True, slots=True)
class Batch:
    """The rows of one pass: `decoding` rows for slots 0 … decoding−1, then `chunked` · chunk rows, then padding."""

    tokens: torch.Tensor
    """[rows]"""
    positions: torch.Tensor
    """[rows]: where each token stands in its sequence."""
    write_slots: torch.Tensor
    """[rows]: the token's slot, or the cache's padding slot."""
    decoding: int
    chunk_slots: torch.Tensor
    """[chunked]: slots of the chunks."""
    longest: int
    """Bounds positions + 1 of the decoding rows."""
    longest_chunk: int
    """Bounds positions + 1 of the chunks."""


class Decoder:
    """The network over a KV cache. Every method is for the engine's thread, under inference mode."""

    def __init__(
        self, config: Any, architecture: Architecture, weights: ServedWeights, cache: KVCache, rows: Rows
    ) -> None:
        self.architecture, self.weights, self.cache, self.rows = architecture, weights, cache, rows
        device, dtype = cache.data.device, cache.data.dtype
        self.cos, self.sin = rotary_table(config, architecture, cache.capacity, device, dtype)
        self.scale = architecture.head_dim**-0.5
        self.fused = device.type != "cpu"

    def forward(self, batch: Batch, chunk: int) -> torch.Tensor:
        """Hidden states [rows, hidden] of a batch whose chunks have `chunk` tokens; the cache grows."""
        a, cache = self.architecture, self.cache
        rows, heads = batch.tokens.shape[0], a.num_heads + a.num_kv_heads
        q_width, qk_width, shape = a.num_heads * a.head_dim, heads * a.head_dim, (a.hidden_size,)
        half, eps, inner = a.head_dim // 2, a.rms_norm_eps, a.intermediate_size
        attend = _Attention(self, batch, chunk)
        index = cache.write_index(batch.write_slots, batch.positions)
        x = functional.embedding(batch.tokens, self.weights.embedding)
        cos, sin = self.cos[batch.positions], self.sin[batch.positions]
        for i, w in enumerate(self.weights.layers):
            qkv = self.rows.linear(torch.rms_norm(x, shape, w.input_norm, eps), w.qkv, w.qkv_bias)
            qk = qkv[:, :qk_width].view(rows, heads, a.head_dim)
            if w.q_norm is not None and w.k_norm is not None:
                for part, norm in ((qk[:, : a.num_heads], w.q_norm), (qk[:, a.num_heads :], w.k_norm)):
                    part.copy_(torch.rms_norm(part, (a.head_dim,), norm, eps))
            rolled = qk.roll(half, -1)
            qk.mul_(cos).addcmul_(rolled, sin)
            cache.rows[i].index_put_((index,), qkv[:, q_width:].view(rows, -1, a.head_dim))
            x = self.rows.linear_add(x, attend(i, qkv[:, :q_width]), w.output, w.output_bias)
            gate_up = self.rows.linear(torch.rms_norm(x, shape, w.post_norm, eps), w.gate_up, w.gate_up_bias)
            gate = functional.silu(gate_up[:, :inner]).mul_(gate_up[:, inner:])
            x = self.rows.linear_add(x, gate, w.down, w.down_bias)
        return x

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """hidden [n, hidden] → [n, vocabulary], float32."""
        a = self.architecture
        hidden = torch.rms_norm(hidden, (a.hidden_size,), self.weights.final_norm, a.rms_norm_eps)
        return self.rows.linear(hidden, self.weights.head).float()


class _Attention:
    """Attention of one batch; masks are made once for all layers."""

    def __init__(self, model: Decoder, batch: Batch, chunk: int) -> None:
        self._model, self._batch, self._chunk = model, batch, chunk
        n, p = batch.decoding, batch.chunk_slots.shape[0]
        self._end = n + p * chunk
        self._span, self._chunk_span = model.cache.span(batch.longest), model.cache.span(batch.longest_chunk)
        self._mask = self._make_mask(batch.positions[:n, None], self._span) if n else None
        chunk_positions = batch.positions[n : self._end].view(p, chunk)
        self._chunk_mask = self._make_mask(chunk_positions, self._chunk_span) if p else None

    def __call__(self, layer: int, q: torch.Tensor) -> torch.Tensor:
        """q [rows, query heads · head_dim] → the same shape; zeros for padding."""
        parts = []
        if self._mask is not None:
            parts.append(self._decode(layer, q[: self._batch.decoding], self._mask))
        if self._chunk_mask is not None:
            parts.append(self._chunks(layer, q[self._batch.decoding : self._end], self._chunk_mask))
        if self._end < q.shape[0]:
            parts.append(q.new_zeros(q.shape[0] - self._end, q.shape[1]))
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def _make_mask(self, positions: torch.Tensor, span: int) -> torch.Tensor:
        a, cache = self._model.architecture, self._model.cache
        if self._model.fused:
            return (torch.arange(span, device=positions.device) <= positions[:, :, None])[:, None]
        return attention.blocked_mask(positions, a.num_kv_heads, a.heads_per_kv, span, cache.block, cache.data.dtype)

    def _decode(self, layer: int, q: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        a, cache, n = self._model.architecture, self._model.cache, q.shape[0]
        if self._model.fused:
            keys, values = (cache.data[layer, i, :n, :, : self._span] for i in (0, 1))
            q = q.view(n, 1, a.num_heads, a.head_dim).transpose(1, 2)
            return attention.fused(q, keys, values, mask, self._model.scale).reshape(n, -1)
        q = q.reshape(n * a.num_kv_heads, a.heads_per_kv, a.head_dim)
        keys, values = cache.keys[layer][: q.shape[0]], cache.values[layer][: q.shape[0]]
        return attention.blocked(q, keys, values, mask, self._model.scale).view(n, -1)

    def _chunks(self, layer: int, q: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        a, data, slots = self._model.architecture, self._model.cache.data, self._batch.chunk_slots
        p, c, span = slots.shape[0], self._chunk, self._chunk_span
        keys, values = (data[layer, i, :, :, :span].index_select(0, slots) for i in (0, 1))
        q = q.view(p, c, a.num_heads, a.head_dim).transpose(1, 2)
        if self._model.fused:
            out = attention.fused(q, keys, values, mask, self._model.scale)
        else:
            q = q.reshape(p * a.num_kv_heads, a.heads_per_kv * c, a.head_dim)
            keys, values = keys.view(-1, span, a.head_dim), values.view(-1, span, a.head_dim)
            out = attention.blocked(q, keys, values, mask, self._model.scale).view(p, a.num_heads, c, a.head_dim)
        return out.transpose(1, 2).reshape(p * c, -1)
