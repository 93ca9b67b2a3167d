"""Which architectures the torch engine runs, and what it needs to know of them."""

from dataclasses import dataclass
from typing import Any

import torch
from rljob_api.errors import UserError

SUPPORTED = ("llama", "mistral", "qwen2", "qwen3")


@dataclass(frozen=True, slots=True)
class Architecture:
    """A Llama-like decoder: RMSNorm, rotary positions, grouped-query attention, gated SiLU MLP."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    rms_norm_eps: float
    max_positions: int
    qkv_bias: bool
    output_bias: bool
    mlp_bias: bool
    qk_norm: bool
    tie_word_embeddings: bool

    @property
    def heads_per_kv(self) -> int:
        """Query heads that share one key/value head."""
        return self.num_heads // self.num_kv_heads


def architecture_of(config: Any) -> Architecture:
    """Read a transformers config. Raises UserError for an architecture that the engine cannot run."""
    kind = config.model_type
    if kind not in SUPPORTED:
        raise UserError(
            f"spec.rollout.engine: torch does not run architecture {kind!r}; it runs {', '.join(SUPPORTED)}.",
            hint="Use engine: sglang, or a model of one of these architectures.",
        )
    layer_types = getattr(config, "layer_types", None) or []
    if "sliding_attention" in layer_types or (kind == "mistral" and getattr(config, "sliding_window", None)):
        raise UserError("spec.rollout.engine: torch has no sliding-window attention; use engine: sglang.")
    if config.hidden_act != "silu":
        raise UserError(
            f"spec.rollout.engine: torch runs hidden_act 'silu' only, this model has {config.hidden_act!r}."
        )
    heads = config.num_attention_heads
    attention_bias = bool(getattr(config, "attention_bias", False))
    return Architecture(
        vocab_size=config.vocab_size,
        hidden_size=config.hidden_size,
        intermediate_size=config.intermediate_size,
        num_layers=config.num_hidden_layers,
        num_heads=heads,
        num_kv_heads=config.num_key_value_heads or heads,
        head_dim=getattr(config, "head_dim", None) or config.hidden_size // heads,
        rms_norm_eps=config.rms_norm_eps,
        max_positions=config.max_position_embeddings,
        qkv_bias=kind == "qwen2" or attention_bias,
        output_bias=attention_bias and kind in ("llama", "qwen3"),
        mlp_bias=bool(getattr(config, "mlp_bias", False)),
        qk_norm=kind == "qwen3",
        tie_word_embeddings=bool(config.tie_word_embeddings),
    )


def rotary_table(
    config: Any, architecture: Architecture, length: int, device: torch.device, dtype: torch.dtype
) -> tuple[torch.Tensor, torch.Tensor]:
    """Cosines and signed sines of the rotary embedding, each [length, 1, head_dim].

    The sines of the first half are negated, so that x·cos + roll(x, head_dim/2)·sin is the rotation (RoFormer,
    Su et al. 2021, in the half-split layout of Hugging Face checkpoints).
    """
    parameters = getattr(config, "rope_parameters", None) or {}
    kind = parameters.get("rope_type", "default")
    scaling = 1.0
    if kind == "default":
        base = parameters.get("rope_theta", getattr(config, "rope_theta", 10000.0))
        exponent = torch.arange(0, architecture.head_dim, 2, dtype=torch.float32) / architecture.head_dim
        frequencies = 1.0 / (base**exponent)
    else:
        from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

        if kind in ("dynamic", "longrope"):
            raise UserError(f"spec.rollout.engine: torch has no rotary scaling of type {kind!r}; use engine: sglang.")
        frequencies, scaling = ROPE_INIT_FUNCTIONS[kind](config, torch.device("cpu"))
    angles = torch.arange(length, dtype=torch.float32)[:, None] * frequencies[None, :].float()
    cos, sin = angles.cos() * scaling, angles.sin() * scaling
    return (
        torch.cat((cos, cos), -1)[:, None].to(device, dtype),
        torch.cat((-sin, sin), -1)[:, None].to(device, dtype),
    )
