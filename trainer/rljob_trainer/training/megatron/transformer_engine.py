"""Megatron's layers by TransformerEngine: norms fused into linear layers, grouped products for experts, cuDNN's
attention.

Weights have the same names and shapes as with megatron-core's own layers, so that either takes up the other's
checkpoints and commits. Needs TransformerEngine.
"""

from typing import Any

import torch
from megatron.core.extensions.transformer_engine import TEDotProductAttention, TENorm
from megatron.core.models.gpt.gpt_layer_specs import get_gpt_layer_with_transformer_engine_submodules
from megatron.core.packed_seq_params import PackedSeqParams
from megatron.core.transformer.enums import AttnMaskType
from megatron.core.transformer.transformer_config import TransformerConfig
from megatron.core.transformer.transformer_layer import TransformerLayerSubmodules
from torch import Tensor

from rljob_trainer.training.megatron.attention import Packed, packed_attention, turned

final_norm = TENorm


class FusedAttention(TEDotProductAttention):
    """Rotates queries and keys, then attends by TransformerEngine, which takes cuDNN's or FlashAttention's kernels.

    Context-parallel ranks and float32, for which it has no such kernel or another cut of the sequences, attend as with
    megatron-core's own layers.
    """

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None = None,
        attn_mask_type: Any = None,
        attention_bias: Tensor | None = None,
        packed_seq_params: Packed | None = None,
        num_splits: int | None = None,
    ) -> Tensor:
        """query: [T, heads, D]; key, value: [T, groups, D], of this rank's tokens and heads. Returns [T, heads·D]."""
        packed = packed_seq_params
        assert packed is not None
        assert packed.attend is not None
        plan = packed.attend
        query, key = turned(query, key, packed)
        if packed.context_group is not None or query.dtype not in (torch.bfloat16, torch.float16):
            return packed_attention(query, key, value, plan, packed.context_group).flatten(1)
        result: Tensor = super().forward(
            query,
            key,
            value,
            None,
            AttnMaskType.padding_causal,
            packed_seq_params=PackedSeqParams(
                qkv_format="thd",
                cu_seqlens_q=plan.cu_q,
                cu_seqlens_kv=plan.cu_k,
                max_seqlen_q=plan.max_q,
                max_seqlen_kv=plan.max_k,
            ),
        )
        return result


def fused_layer(config: TransformerConfig, sparse: bool) -> TransformerLayerSubmodules:
    """The parts of a layer, dense or with experts."""
    parts = get_gpt_layer_with_transformer_engine_submodules(
        num_experts=config.num_moe_experts if sparse else None,
        moe_grouped_gemm=config.moe_grouped_gemm,
        qk_layernorm=config.qk_layernorm,
    )
    parts.self_attention.submodules.core_attention = FusedAttention
    return parts
