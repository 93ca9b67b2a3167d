"""The layers that Megatron's model is built of: TransformerEngine's where they are chosen (`fused_layer`), else
megatron-core's own parallel linear layers with our norm and core attention."""

from typing import Any

import torch
from megatron.core.models.gpt.gpt_layer_specs import get_gpt_layer_local_submodules
from megatron.core.transformer.spec_utils import ModuleSpec
from megatron.core.transformer.transformer_block import TransformerBlockSubmodules
from megatron.core.transformer.transformer_config import TransformerConfig
from megatron.core.transformer.transformer_layer import (
    TransformerLayer,
    TransformerLayerSubmodules,
    get_transformer_layer_offset,
)
from torch import Tensor, nn

from rljob_trainer.training.megatron.attention import VarlenAttention
from rljob_trainer.training.megatron.options import TRANSFORMER_ENGINE


class RmsNorm(nn.Module):
    """RMSNorm by PyTorch's fused kernel. Unlike Megatron's wrapper of it, made for sequence parallelism too: the
    weight is marked, so that its gradients are added up over tensor-parallel ranks."""

    def __init__(self, config: Any, hidden_size: int, eps: float = 1e-6, **_: Any) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(hidden_size, dtype=config.params_dtype))
        self.weight.sequence_parallel = config.sequence_parallel  # type: ignore[attr-defined]

    def forward(self, states: Tensor) -> Tensor:
        """Normalise the last axis."""
        return nn.functional.rms_norm(states, self.weight.shape, self.weight, self.eps)


def block_spec(config: TransformerConfig) -> TransformerBlockSubmodules:
    """The layers of this pipeline stage, dense or with experts, and the norm after the last."""
    frequency = config.moe_layer_freq if config.num_moe_experts else [0] * config.num_layers
    first = get_transformer_layer_offset(config)
    mine = range(first, first + config.num_layers // config.pipeline_model_parallel_size)
    layer_of, norm = _local_layer, RmsNorm
    if config.transformer_impl == TRANSFORMER_ENGINE:
        from rljob_trainer.training.megatron.transformer_engine import final_norm, fused_layer

        layer_of, norm = fused_layer, final_norm
    return TransformerBlockSubmodules(
        layer_specs=[
            ModuleSpec(module=TransformerLayer, submodules=layer_of(config, bool(frequency[layer]))) for layer in mine
        ],
        layer_norm=norm,
    )


def _local_layer(config: TransformerConfig, sparse: bool) -> TransformerLayerSubmodules:
    parts = get_gpt_layer_local_submodules(
        num_experts=config.num_moe_experts if sparse else None,
        moe_grouped_gemm=False,
        qk_layernorm=config.qk_layernorm,
        normalization="RMSNorm",
    )
    parts.input_layernorm = parts.pre_mlp_layernorm = RmsNorm
    attention = parts.self_attention.submodules
    attention.core_attention = VarlenAttention
    if config.qk_layernorm:
        attention.q_layernorm = attention.k_layernorm = RmsNorm
    return parts
