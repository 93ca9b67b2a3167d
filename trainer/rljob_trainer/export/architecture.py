"""What a conversion must know of a model, read from its Hugging Face config."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from rljob_api.errors import UserError

SUPPORTED = ("llama", "qwen2", "qwen3", "qwen3_moe")
"""`model_type` of the configs that can be converted. Qwen2.5 is `qwen2`, the R1 distills are `qwen2` or `llama`."""


@dataclass(frozen=True, slots=True)
class Architecture:
    """Shapes and switches of a decoder: grouped-query attention, RMSNorm, gated MLP or experts of such."""

    model_type: str
    layers: int
    hidden: int
    heads: int
    """Query heads."""
    groups: int
    """Key/value heads: query groups, in Megatron's words."""
    head_dim: int
    ffn: int
    """Width of the dense MLP."""
    vocab: int
    """Rows of the embedding on the Hugging Face side."""
    tied: bool
    """The output layer is the embedding."""
    qkv_bias: bool
    qk_norm: bool
    """RMSNorm on each head's queries and keys."""
    experts: int = 0
    """Experts of a sparse layer; 0: a dense model."""
    expert_ffn: int = 0
    sparse: tuple[bool, ...] = ()
    """Which layers have experts; empty for a dense model."""

    def is_sparse(self, layer: int) -> bool:
        """Whether `layer` (from 0) has experts."""
        return bool(self.sparse) and self.sparse[layer]

    @property
    def uniform(self) -> bool:
        """Whether all layers have the same tensors, so that a checkpoint may stack them."""
        return len(set(self.sparse)) <= 1

    @property
    def qkv_rows(self) -> int:
        """Rows of Megatron's fused query/key/value projection."""
        return (self.heads + 2 * self.groups) * self.head_dim


def architecture_of(config: Any) -> Architecture:
    """From a transformers config, or from the content of a `config.json`.

    Raises UserError for a model type that is not in `SUPPORTED`, and for switches that have no counterpart here.
    """

    def read(name: str, default: Any = None) -> Any:
        return config.get(name, default) if isinstance(config, Mapping) else getattr(config, name, default)

    kind = str(read("model_type"))
    if kind not in SUPPORTED:
        raise UserError(
            f"the architecture {kind!r} cannot be converted",
            hint=f"supported: {', '.join(SUPPORTED)} (Qwen2.5 is qwen2)",
        )
    # Qwen2 has biases on q, k, v always; the others where `attention_bias` asks for them, and then on o as well.
    for switch in ("attention_bias", "mlp_bias"):
        if kind != "qwen2" and read(switch):
            raise UserError(f"config.json: {switch} is true, which the conversion of {kind} models does not know")
    for name in ("num_hidden_layers", "hidden_size", "num_attention_heads", "intermediate_size", "vocab_size"):
        if not isinstance(read(name), int):
            raise UserError(f"config.json: {name} is {read(name)!r}, an integer is needed")
    layers, hidden, heads = read("num_hidden_layers"), read("hidden_size"), read("num_attention_heads")
    groups = read("num_key_value_heads") or heads
    if heads % groups:
        raise UserError(f"config.json: num_attention_heads {heads} is not a multiple of num_key_value_heads {groups}")
    sparse = kind == "qwen3_moe"
    return Architecture(
        model_type=kind,
        layers=layers,
        hidden=hidden,
        heads=heads,
        groups=groups,
        head_dim=read("head_dim") or hidden // heads,
        ffn=read("intermediate_size"),
        vocab=read("vocab_size"),
        tied=bool(read("tie_word_embeddings", False)),
        qkv_bias=kind == "qwen2",
        qk_norm=kind in ("qwen3", "qwen3_moe"),
        experts=(read("num_experts") or read("num_local_experts")) if sparse else 0,
        expert_ffn=read("moe_intermediate_size") if sparse else 0,
        sparse=_sparse_layers(read, layers) if sparse else (),
    )


def _sparse_layers(read: Callable[..., Any], layers: int) -> tuple[bool, ...]:
    """As Qwen3-MoE decides it: every `decoder_sparse_step`-th layer, except those in `mlp_only_layers`."""
    step, dense = read("decoder_sparse_step") or 1, set(read("mlp_only_layers") or ())
    return tuple(layer not in dense and (layer + 1) % step == 0 for layer in range(layers))
