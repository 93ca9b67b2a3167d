"""The forward pass: one token for every decoding sequence and a chunk of tokens for some others, in one go."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional

from rljob_trainer.inference.torch_engine import attention
from rljob_trainer.inference.torch_engine.architecture import Architecture, rotary_table
from rljob_trainer.inference.torch_engine.cache import PagedCache
from rljob_trainer.inference.torch_engine.linear import Rows
from rljob_trainer.inference.torch_engine.weights import ServedWeights

DENSE = 0.25
"""Pages are multiplied where they lie, unneeded ones among them, unless fewer than this share is needed: copying a page
costs several times as much as multiplying it."""


@dataclass(frozen=True, slots=True)
class Batch:
    """The rows of one pass: one for each of n decoding sequences, then up to `chunk` for each of p others, then
    padding."""

    tokens: NDArray[np.int64]
    """[rows]"""
    positions: NDArray[np.int64]
    """[rows]: where each token stands in its sequence."""
    write_pages: NDArray[np.int64]
    """[rows]: the page that each token's keys and values go to; 0 for padding."""
    decoding: attention.Pages | None
    """Pages of the decoding sequences."""
    chunked: attention.Pages | None
    """Pages of the others."""
    chunk: int
    chunk_positions: NDArray[np.int64]
    """[p, chunk]: positions of the others' queries; behind a short chunk the last one is repeated."""
    chunk_places: NDArray[np.int64]
    """For each row of theirs, its place among the p · chunk."""


class Decoder:
    """The network over a cache. Every method is for the engine's thread, under inference mode."""

    def __init__(
        self,
        config: Any,
        architecture: Architecture,
        weights: ServedWeights,
        cache: PagedCache,
        rows: Rows,
        max_length: int,
    ) -> None:
        self.architecture, self.weights, self.cache, self.rows = architecture, weights, cache, rows
        self.device, self.dtype = weights.embedding.device, weights.embedding.dtype
        self.cos, self.sin = rotary_table(config, architecture, max_length, self.device, self.dtype)
        self.scale = architecture.head_dim**-0.5
        self.masks = attention.mask_table(cache.page, self.device)
        self.root_eps = torch.tensor(architecture.rms_norm_eps**0.5, device=self.device)

    def forward(self, batch: Batch) -> torch.Tensor:
        """Hidden states [rows, hidden]; the cache grows."""
        a, cache = self.architecture, self.cache
        tokens, positions, pages = map(self.tensor, (batch.tokens, batch.positions, batch.write_pages))
        rows, heads = len(batch.tokens), a.num_heads + a.num_kv_heads
        q_width, qk_width = a.num_heads * a.head_dim, heads * a.head_dim
        half, eps, inner = a.head_dim // 2, self.root_eps, a.intermediate_size
        attend = _Attention(self, batch, positions)
        places = cache.places(pages, positions % cache.page)
        x = functional.embedding(tokens, self.weights.embedding)
        cos, sin = self.cos[positions], self.sin[positions]
        for i, w in enumerate(self.weights.layers):
            qkv = self.rows.linear(rms_norm(x, w.input_norm, eps), w.qkv, w.qkv_bias)
            qk = qkv[:, :qk_width].view(rows, heads, a.head_dim)
            if w.q_norm is not None and w.k_norm is not None:
                for part, norm in ((qk[:, : a.num_heads], w.q_norm), (qk[:, a.num_heads :], w.k_norm)):
                    part.copy_(rms_norm(part, norm, eps))
            rolled = qk.roll(half, -1)
            qk.mul_(cos).addcmul_(rolled, sin)
            cache.write(i, places, qkv[:, q_width:qk_width].float(), qkv[:, qk_width:].float())
            x = self.rows.linear_add(x, attend(i, qkv[:, :q_width]), w.output, w.output_bias)
            gate_up = self.rows.linear(rms_norm(x, w.post_norm, eps), w.gate_up, w.gate_up_bias)
            gate = functional.silu(gate_up[:, :inner]).mul_(gate_up[:, inner:])
            x = self.rows.linear_add(x, gate, w.down, w.down_bias)
        return x

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """hidden [n, hidden] → [n, vocabulary], float32."""
        hidden = rms_norm(hidden, self.weights.final_norm, self.root_eps)
        return self.rows.linear(hidden, self.weights.head).float()

    def tensor(self, array: NDArray[Any]) -> torch.Tensor:
        """The array on the model's device."""
        return torch.from_numpy(array).to(self.device)


class _Attention:
    """Attention of one batch; what is the same in all layers is made once."""

    def __init__(self, model: Decoder, batch: Batch, positions: torch.Tensor) -> None:
        self._model, self._chunk = model, batch.chunk
        decoding, chunked = batch.decoding, batch.chunked
        self._n = n = decoding.counts[0] if decoding else 0
        self._end = n + len(batch.chunk_places)
        self._places = model.tensor(batch.chunk_places)
        self._decoding = self._chunked = None
        if decoding:
            pool = int(decoding.ids.max()) + 1
            dense = len(decoding.ids) >= DENSE * pool
            self._decoding = self._plan(decoding, positions[:n, None], pool if dense else None)
        if chunked:
            self._chunked = self._plan(chunked, model.tensor(batch.chunk_positions), None)

    def __call__(self, layer: int, q: torch.Tensor) -> torch.Tensor:
        """q [rows, query heads · head_dim] → the same shape; zeros for padding."""
        parts = []
        if self._decoding is not None:
            parts.append(self._attend(layer, q[: self._n], 1, *self._decoding))
        if self._chunked is not None:
            chunks = q.new_zeros(self._chunked[0].counts[0] * self._chunk, q.shape[1])
            chunks.index_copy_(0, self._places, q[self._n : self._end])
            out = self._attend(layer, chunks, self._chunk, *self._chunked)
            parts.append(out.index_select(0, self._places))
        if self._end < q.shape[0]:
            parts.append(q.new_zeros(q.shape[0] - self._end, q.shape[1]))
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def _plan(
        self, pages: attention.Pages, positions: torch.Tensor, pool: int | None
    ) -> tuple[attention.Plan, torch.Tensor | None, int]:
        """The plan, the pages to gather when they are not read where they lie, and how many are read there."""
        model, a = self._model, self._model.architecture
        plan = attention.plan(pages, positions, a.num_kv_heads, a.heads_per_kv, model.masks, pool)
        return plan, model.tensor(pages.ids) if pool is None else None, pool or 0

    def _attend(
        self, layer: int, q: torch.Tensor, c: int, plan: attention.Plan, gather: torch.Tensor | None, pool: int
    ) -> torch.Tensor:
        a, cache, scale = self._model.architecture, self._model.cache, self._model.scale
        keys, values = cache.keys[layer], cache.values[layer]
        if gather is None:
            keys, values = keys[:pool], values[:pool]
        else:
            keys, values = keys.index_select(0, gather), values.index_select(0, gather)
        if c == 1:
            q = q.view(-1, a.num_kv_heads, a.heads_per_kv, a.head_dim)
            out = attention.attend(q.float(), keys, values, plan, scale).view(-1, a.num_heads * a.head_dim)
        else:
            q = q.view(-1, c, a.num_heads, a.head_dim).transpose(1, 2)
            q = q.reshape(-1, a.num_kv_heads, a.heads_per_kv * c, a.head_dim)
            out = attention.attend(q.float(), keys, values, plan, scale).view(-1, a.num_heads, c, a.head_dim)
            out = out.transpose(1, 2).reshape(-1, a.num_heads * a.head_dim)
        return out.to(q.dtype)


def rms_norm(x: torch.Tensor, weight: torch.Tensor, root_eps: torch.Tensor) -> torch.Tensor:
    """x / sqrt(mean(x²) + eps) · weight over the last dimension, in float32 (Zhang & Sennrich 2019)."""
    if x.dtype != torch.float32:
        return rms_norm(x.float(), torch.ones_like(weight, dtype=torch.float32), root_eps).to(x.dtype) * weight
    # As a hypotenuse it is four small kernels instead of the nine of torch.rms_norm on CPU.
    root = torch.linalg.vector_norm(x, dim=-1, keepdim=True).mul_(x.shape[-1] ** -0.5).hypot_(root_eps)
    return x.div(root).mul_(weight)
