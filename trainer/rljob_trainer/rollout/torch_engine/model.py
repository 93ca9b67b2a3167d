"""The forward pass: one token for many slots (decode) or a chunk of tokens for a few (prefill)."""

from collections.abc import Callable
from typing import Any

import torch
from torch.nn import functional

from rljob_trainer.rollout.torch_engine import attention
from rljob_trainer.rollout.torch_engine.architecture import Architecture, rotary_table
from rljob_trainer.rollout.torch_engine.linear import Rows
from rljob_trainer.rollout.torch_engine.weights import ServedWeights

Attend = Callable[[int, torch.Tensor], torch.Tensor]


class KVCache:
    """Keys and values of all slots: one tensor [layers, 2, slots, kv heads, capacity, head_dim].

    `capacity` is one more than the longest sequence, rounded up to whole attention blocks; its last position takes
    the writes of padding.
    """

    def __init__(
        self, architecture: Architecture, slots: int, max_length: int, device: torch.device, dtype: torch.dtype
    ) -> None:
        self.block = attention.block_size(max_length + 1)
        self.capacity = -(-(max_length + 1) // self.block) * self.block
        self.slots, self.heads = slots, architecture.num_kv_heads
        shape = (architecture.num_layers, 2, slots, self.heads, self.capacity, architecture.head_dim)
        self.data = torch.zeros(shape, device=device, dtype=dtype)
        flat = self.data.view(*shape[:2], slots * self.heads, self.capacity, architecture.head_dim)
        self.keys, self.values = [layer[0] for layer in flat], [layer[1] for layer in flat]
        rows = self.data.view(*shape[:2], -1, architecture.head_dim)
        self.key_rows, self.value_rows = [layer[0] for layer in rows], [layer[1] for layer in rows]
        self._head_offsets = torch.arange(self.heads, device=device) * self.capacity

    def write_index(self, slots: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        """slots, positions [n] → rows of `key_rows`, [n·kv heads]."""
        first = slots * (self.heads * self.capacity) + positions
        return (first[:, None] + self._head_offsets).view(-1)

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

    def decode(self, tokens: torch.Tensor, positions: torch.Tensor, writes: torch.Tensor, longest: int) -> torch.Tensor:
        """One token in each of the first n slots: all [n]; `writes` is where keys go (padding: the last position).

        Returns logits [n, vocabulary] in float32. `longest` bounds positions + 1.
        """
        a, cache = self.architecture, self.cache
        n, span = tokens.shape[0], cache.span(longest)
        index = cache.write_index(torch.arange(n, device=tokens.device), writes)
        groups, repeats = a.num_kv_heads, a.heads_per_kv
        if self.fused:
            visible = (torch.arange(span, device=tokens.device) <= positions[:, None])[:, None, None]
            data = cache.data[:, :, :n, :, :span]

            def attend(layer: int, q: torch.Tensor) -> torch.Tensor:
                result = attention.fused(q[:, :, None], data[layer, 0], data[layer, 1], visible, self.scale)
                return result.reshape(n, -1)
        else:
            mask = attention.blocked_mask(positions[:, None], groups, repeats, span, cache.block, cache.data.dtype)

            def attend(layer: int, q: torch.Tensor) -> torch.Tensor:
                q = q.reshape(n * groups, repeats, a.head_dim)
                keys, values = cache.keys[layer][: n * groups], cache.values[layer][: n * groups]
                return attention.blocked(q, keys, values, mask, self.scale).view(n, -1)

        return self.logits(self._layers(tokens, positions, index, attend))

    def prefill(
        self, slots: torch.Tensor, tokens: torch.Tensor, positions: torch.Tensor, writes: torch.Tensor, longest: int
    ) -> torch.Tensor:
        """A chunk of c tokens for p slots: slots [p], the others [p, c]. Returns hidden states [p·c, hidden]."""
        a, cache = self.architecture, self.cache
        p, c = tokens.shape
        span = cache.span(longest)
        index = cache.write_index(slots.repeat_interleave(c), writes.reshape(-1))
        groups, repeats = a.num_kv_heads, a.heads_per_kv
        if self.fused:
            visible = (torch.arange(span, device=tokens.device) <= positions[:, :, None])[:, None]
            mask = visible
        else:
            mask = attention.blocked_mask(positions, groups, repeats, span, cache.block, cache.data.dtype)

        def attend(layer: int, q: torch.Tensor) -> torch.Tensor:
            keys, values = (cache.data[layer, i, :, :, :span].index_select(0, slots) for i in (0, 1))
            q = q.reshape(p, c, a.num_heads, a.head_dim).transpose(1, 2)
            if self.fused:
                result = attention.fused(q, keys, values, mask, self.scale)
            else:
                q = q.reshape(p * groups, repeats * c, a.head_dim)
                keys, values = keys.view(p * groups, span, -1), values.view(p * groups, span, -1)
                result = attention.blocked(q, keys, values, mask, self.scale).view(p, a.num_heads, c, a.head_dim)
            return result.transpose(1, 2).reshape(p * c, -1)

        return self._layers(tokens.reshape(-1), positions.reshape(-1), index, attend)

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """hidden [n, hidden] → [n, vocabulary], float32."""
        a = self.architecture
        hidden = functional.rms_norm(hidden, (a.hidden_size,), self.weights.final_norm, a.rms_norm_eps)
        return self.rows.linear(hidden, self.weights.head).float()

    def _layers(
        self, tokens: torch.Tensor, positions: torch.Tensor, index: torch.Tensor, attend: Attend
    ) -> torch.Tensor:
        a, rows, cache = self.architecture, self.rows, self.cache
        n, heads = tokens.shape[0], a.num_heads + a.num_kv_heads
        width, half, shape = heads * a.head_dim, a.head_dim // 2, (a.hidden_size,)
        x = functional.embedding(tokens, self.weights.embedding)
        cos, sin = self.cos[positions], self.sin[positions]
        for i, w in enumerate(self.weights.layers):
            qkv = rows.linear(functional.rms_norm(x, shape, w.input_norm, a.rms_norm_eps), w.qkv, w.qkv_bias)
            qk = qkv[:, :width].view(n, heads, a.head_dim)
            if w.q_norm is not None and w.k_norm is not None:
                q = functional.rms_norm(qk[:, : a.num_heads], (a.head_dim,), w.q_norm, a.rms_norm_eps)
                k = functional.rms_norm(qk[:, a.num_heads :], (a.head_dim,), w.k_norm, a.rms_norm_eps)
                qk = torch.cat((q, k), 1)
            qk = torch.addcmul(qk * cos, qk.roll(half, -1), sin)
            cache.key_rows[i].index_copy_(0, index, qk[:, a.num_heads :].reshape(-1, a.head_dim))
            cache.value_rows[i].index_copy_(0, index, qkv[:, width:].reshape(-1, a.head_dim))
            x = rows.linear_add(x, attend(i, qk[:, : a.num_heads]), w.output, w.output_bias)
            gate_up = rows.linear(functional.rms_norm(x, shape, w.post_norm, a.rms_norm_eps), w.gate_up, w.gate_up_bias)
            gate = functional.silu(gate_up[:, : a.intermediate_size]).mul_(gate_up[:, a.intermediate_size :])
            x = rows.linear_add(x, gate, w.down, w.down_bias)
        return x
