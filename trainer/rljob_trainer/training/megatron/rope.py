"""Rotary position embeddings (Su et al., arXiv:2104.09864) as the model's Hugging Face config has them."""

from typing import Any

import torch
from torch import Tensor


def inverse_frequencies(config: Any) -> tuple[Tensor, float]:
    """[D/2] float32 frequencies and the factor on cosine and sine, for every scaling that transformers knows and that
    does not depend on the sequence's length."""
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    parameters = getattr(config, "rope_parameters", None) or {}
    kind = parameters.get("rope_type", "default")
    if kind == "default":
        size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        base = parameters.get("rope_theta") or config.rope_theta
        return 1.0 / base ** (torch.arange(0, size, 2, dtype=torch.int64).float() / size), 1.0
    frequencies, factor = ROPE_INIT_FUNCTIONS[kind](config, torch.device("cpu"))
    return frequencies.float(), float(factor)


def angles(position_ids: Tensor, frequencies: Tensor, factor: float) -> tuple[Tensor, Tensor]:
    """Cosine and sine for each token: [T, D/2] float32 each. position_ids: [T]. frequencies: [D/2] float32."""
    phase = position_ids[:, None].float() * frequencies[None, :]
    return phase.cos() * factor, phase.sin() * factor


def rotate(states: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate queries or keys [T, heads, D], halves paired as Hugging Face and Megatron do. Computed in float32."""
    first, second = states.float().chunk(2, dim=-1)
    cos, sin = cos[:, None, :], sin[:, None, :]
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1).to(states.dtype)
