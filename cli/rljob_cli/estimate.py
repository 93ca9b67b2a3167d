"""Parameters and memory of a job, estimated from the model's shape alone. No weights are read."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rljob_api.rules.arithmetic import generates, max_context_length, trains, trains_rl, world_size
from rljob_api.v1alpha1.job import RLJob, RLJobSpec

_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
_MASTER_BYTES = 4
"""The optimizer's own copy of the weights, and its two moments, are kept in float32."""


@dataclass(frozen=True, slots=True)
class Shape:
    """What the estimate needs to know of a decoder-only transformer with a gated MLP (Llama, Qwen, Mistral)."""

    hidden_size: int
    intermediate_size: int
    layers: int
    heads: int
    key_value_heads: int
    head_dim: int
    vocabulary: int | None
    tied: bool
    attention_bias: bool

    @property
    def parameters(self) -> int:
        """Number of weights; without the embedding where the vocabulary is not known."""
        width, inner = self.hidden_size, self.heads * self.head_dim
        shared = self.key_value_heads * self.head_dim
        attention = 2 * width * inner + 2 * width * shared + (inner + 2 * shared if self.attention_bias else 0)
        layer = attention + 3 * width * self.intermediate_size + 2 * width
        embedding = (self.vocabulary or 0) * width * (1 if self.tied else 2)
        return embedding + self.layers * layer + width


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes, each for one process."""

    weights: int
    """Weights at rest: one full copy over the ranks that share it."""
    gradients: int
    optimizer: int
    reference: int
    rank_total: int
    """All of the above on one trainer rank, activations left out."""
    engine_weights: int
    kv_cache_per_sequence: int
    """Keys and values of one sequence at its longest."""


def shape_of(job: RLJob, directories: list[Path]) -> Shape | None:
    """The model's shape, from `randomInit` or a local config.json; None when neither is at hand."""
    model = job.spec.model
    if model.random_init:
        init = model.random_init
        return Shape(
            init.hidden_size,
            init.intermediate_size,
            init.num_hidden_layers,
            init.num_attention_heads,
            init.num_key_value_heads,
            init.hidden_size // init.num_attention_heads,
            _vocabulary(model.tokenizer_path, directories),
            init.tie_word_embeddings,
            attention_bias=True,
        )
    config = _json(model.path, "config.json", directories)
    return _from_config(config) if config else None


def _from_config(config: dict[str, Any]) -> Shape | None:
    try:
        heads = int(config["num_attention_heads"])
        return Shape(
            int(config["hidden_size"]),
            int(config["intermediate_size"]),
            int(config["num_hidden_layers"]),
            heads,
            int(config.get("num_key_value_heads", heads)),
            int(config.get("head_dim") or config["hidden_size"] // heads),
            int(config["vocab_size"]),
            bool(config.get("tie_word_embeddings", True)),
            bool(config.get("attention_bias", config.get("model_type") == "qwen2")),
        )
    except (KeyError, TypeError, ValueError):
        return None  # Another architecture: no estimate rather than a wrong one.


def _vocabulary(path: str | None, directories: list[Path]) -> int | None:
    tokenizer = _json(path, "tokenizer.json", directories)
    if not tokenizer:
        return None
    vocabulary = tokenizer.get("model", {}).get("vocab", {})
    ids = {entry["id"] for entry in tokenizer.get("added_tokens", [])}
    ids |= set(vocabulary.values()) if isinstance(vocabulary, dict) else set(range(len(vocabulary)))
    return len(ids) or None


def _json(path: str | None, name: str, directories: list[Path]) -> dict[str, Any] | None:
    for directory in directories if path else []:
        file = directory / str(path) / name
        if file.is_file():
            content = json.loads(file.read_text(encoding="utf-8"))
            return content if isinstance(content, dict) else None
    return None


def memory_of(spec: RLJobSpec, shape: Shape) -> Memory:
    """Memory of one rank and one engine. Fully sharded ranks hold 1 ÷ ranks of weights, gradients and moments each."""
    count, compute, ranks = shape.parameters, _BYTES[spec.model.dtype], world_size(spec)
    algorithm = spec.algorithm
    has_reference = trains_rl(spec) and (algorithm.kl.loss_coef > 0 or algorithm.kl.monitor)
    share = -(-count // ranks)
    weights = share * _MASTER_BYTES if trains(spec) else 0
    gradients = share * _MASTER_BYTES if trains(spec) else 0
    optimizer = 2 * share * _MASTER_BYTES if trains(spec) else 0
    reference = share * compute if has_reference else 0
    per_token = 2 * shape.layers * shape.key_value_heads * shape.head_dim * compute
    engines = generates(spec)
    return Memory(
        weights,
        gradients,
        optimizer,
        reference,
        weights + gradients + optimizer + reference,
        count * compute if engines else 0,
        per_token * max_context_length(spec) if engines else 0,
    )


def human(size: int) -> str:
    """Bytes with a binary unit."""
    value, unit = float(size), "B"
    for larger in ("KiB", "MiB", "GiB", "TiB"):
        if value < 1024:
            break
        value, unit = value / 1024, larger
    return f"{value:.1f} {unit}" if unit != "B" else f"{size} B"


def as_data(memory: Memory) -> dict[str, int]:
    """As JSON has it, in bytes."""
    return {f"{key}_bytes": value for key, value in asdict(memory).items()}
