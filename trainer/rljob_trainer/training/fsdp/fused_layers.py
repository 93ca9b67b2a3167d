"""Norms, activations and rotary embeddings of transformers' models in one pass over their data each.

As transformers writes them they are five to ten kernels with float32 in between: for small models a third of a step.
Rounding differs by what is rounded once instead of twice; nothing else does.
"""

import sys
from collections.abc import Callable
from functools import cache
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn

MODELS = frozenset({"llama", "mistral", "qwen2", "qwen3", "qwen3_moe"})
"""Model types whose layers are known to be what is put in their place."""


def use_fused_layers(model: Any) -> None:
    """Let a transformers model compute its norms, gated activations and rotary embeddings by fused kernels. Models of
    other types stay as they are."""
    if model.config.model_type not in MODELS:
        return
    for module in model.modules():
        if type(module).__name__.endswith("RMSNorm") and hasattr(module, "variance_epsilon"):
            module.forward = MethodType(_norm, module)
        elif isinstance(getattr(module, "gate_proj", None), nn.Linear) and model.config.hidden_act == "silu":
            module.forward = MethodType(_gated, module)
    source: Any = sys.modules[type(model).__module__]
    if not isinstance(source.apply_rotary_pos_emb, _Rotary):  # the layers look it up in their module
        source.apply_rotary_pos_emb = _Rotary(source.apply_rotary_pos_emb)


def one_pass(function: Callable[..., Any], first: Tensor, *args: Any) -> Any:
    """function(first, *args), compiled into one kernel on a GPU; a CPU takes it as it is."""
    return (_compiled(function) if first.is_cuda else function)(first, *args)


@cache
def _compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    return torch.compile(function, dynamic=True)


def _norm(module: Any, hidden_states: Tensor) -> Tensor:
    return nn.functional.rms_norm(hidden_states, module.weight.shape, module.weight, module.variance_epsilon)


def _gated(module: Any, states: Tensor) -> Tensor:
    result: Tensor = module.down_proj(one_pass(silu_product, module.gate_proj(states), module.up_proj(states)))
    return result


def silu_product(gate: Tensor, up: Tensor) -> Tensor:
    """silu(gate)·up, computed in float32."""
    return (nn.functional.silu(gate.float()) * up.float()).to(gate.dtype)


class _Rotary:
    """transformers' rotary embedding, compiled."""

    def __init__(self, rotate: Callable[..., tuple[Tensor, Tensor]]) -> None:
        self._rotate = rotate

    def __call__(self, query: Tensor, key: Tensor, cos: Tensor, sin: Tensor, unsqueeze_dim: int = 1) -> Any:
        return one_pass(self._rotate, query, key, cos, sin, unsqueeze_dim)
