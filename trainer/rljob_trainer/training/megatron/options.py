"""Megatron's model options from a Hugging Face config, and whose layers a model is built of. Needs no Megatron."""

from typing import Any

from rljob_api.errors import UserError
from rljob_api.v1alpha1.trainer import Recompute

from rljob_trainer.export.architecture import Architecture
from rljob_trainer.training.megatron.layout import Layout, check_model

TRANSFORMER_ENGINE, LOCAL = "transformer_engine", "local"
IMPLEMENTATION = "spec.trainer.megatronArgs.transformer_impl"
OURS = frozenset({
    "num_layers", "hidden_size", "num_attention_heads", "num_query_groups", "kv_channels", "ffn_hidden_size",
    "tensor_model_parallel_size", "pipeline_model_parallel_size", "context_parallel_size",
    "expert_model_parallel_size", "expert_tensor_parallel_size", "sequence_parallel", "bf16", "fp16", "params_dtype",
    "pipeline_dtype", "calculate_per_token_loss", "variable_seq_lengths", "virtual_pipeline_model_parallel_size",
    "recompute_granularity", "recompute_method", "recompute_num_layers", "perform_initialization",
})  # fmt: skip
"""Options that follow from the spec, which `trainer.megatronArgs` may not set."""


def model_options(arch: Architecture, config: Any, layout: Layout, extra: dict[str, Any]) -> dict[str, Any]:
    """Fields of `TransformerConfig` but for types and functions: shapes, norms, experts, parallelism.

    arch: what the conversion reads from `config`, the transformers config. extra: `trainer.megatronArgs`, which win
    where they may. Raises UserError for a layout that does not fit the model, and for options that are not theirs.
    """
    check_model(layout, layers=arch.layers, heads=arch.heads, groups=arch.groups, experts=arch.experts)
    if getattr(config, "use_sliding_window", False):
        raise UserError("spec.model: sliding-window attention is not available with the megatron backend")
    if config.hidden_act != "silu":
        raise UserError(f"spec.model: the activation {config.hidden_act!r} is not available with the megatron backend")
    taken = sorted(OURS & extra.keys())
    if taken:
        raise UserError(f"spec.trainer.megatronArgs.{taken[0]}: follows from the rest of the spec and is not set here")
    options: dict[str, Any] = {
        "num_layers": arch.layers,
        "hidden_size": arch.hidden,
        "num_attention_heads": arch.heads,
        "num_query_groups": arch.groups,
        "kv_channels": arch.head_dim,
        "ffn_hidden_size": arch.ffn,
        "gated_linear_unit": True,
        "add_bias_linear": False,
        "add_qkv_bias": arch.qkv_bias,
        "qk_layernorm": arch.qk_norm,
        "normalization": "RMSNorm",
        "layernorm_epsilon": config.rms_norm_eps,
        "attention_dropout": 0.0,
        "hidden_dropout": 0.0,
        "tensor_model_parallel_size": layout.tensor,
        "pipeline_model_parallel_size": layout.pipeline,
        "context_parallel_size": layout.context,
        "expert_model_parallel_size": layout.expert,
        "expert_tensor_parallel_size": layout.tensor,
        "sequence_parallel": layout.sequence,
        # Losses are normalised over the global batch already: gradients are summed over ranks, not averaged.
        "calculate_per_token_loss": True,
        # Packs differ in length, so pipeline stages tell one another the shape first.
        "variable_seq_lengths": layout.pipeline > 1,
        # Megatron asks for it with variable lengths, of models without experts, too.
        "moe_token_dispatcher_type": "alltoall",
        # Every weight is loaded; nothing is drawn.
        "perform_initialization": False,
        "gradient_accumulation_fusion": False,
        "masked_softmax_fusion": False,
        "persist_layer_norm": False,
    }
    if arch.experts:
        options |= {
            "num_moe_experts": arch.experts,
            "moe_ffn_hidden_size": arch.expert_ffn,
            "moe_layer_freq": [int(sparse) for sparse in arch.sparse],
            "moe_router_topk": config.num_experts_per_tok,
            # The softmax over the chosen experts alone equals that over all, normalised over the chosen.
            "moe_router_pre_softmax": not config.norm_topk_prob,
            "moe_router_load_balancing_type": "none",
            "moe_router_dtype": "fp32",
        }
    return options | extra


def recompute_options(spec: Recompute, *, force_full: bool = False) -> dict[str, Any]:
    """Fields of `TransformerConfig` for activation recomputation. force_full: `sft.gradientCheckpointing`, which asks
    for whole layers where the spec does not say otherwise."""
    if spec.granularity == "none":
        full = {"recompute_granularity": "full", "recompute_method": "uniform", "recompute_num_layers": 1}
        none = dict.fromkeys(full)
        return full if force_full else none
    if spec.granularity == "selective":
        return {"recompute_granularity": "selective", "recompute_method": None, "recompute_num_layers": None}
    return {
        "recompute_granularity": "full",
        "recompute_method": spec.method,
        "recompute_num_layers": spec.num_layers,
    }


def implementation(requested: object, *, available: bool) -> str:
    """The value of Megatron's `transformer_impl`: TransformerEngine's layers where it can be imported, else
    megatron-core's own. requested: what `megatronArgs` says, None if nothing. available: whether TransformerEngine can
    be imported. Raises UserError for another value, or for one that is not there."""
    if requested is None:
        return TRANSFORMER_ENGINE if available else LOCAL
    if requested not in (TRANSFORMER_ENGINE, LOCAL):
        raise UserError(f"{IMPLEMENTATION}: {requested!r} is neither {TRANSFORMER_ENGINE!r} nor {LOCAL!r}")
    if requested == TRANSFORMER_ENGINE and not available:
        raise UserError(
            f"{IMPLEMENTATION}: {TRANSFORMER_ENGINE!r}, but TransformerEngine cannot be imported here",
            hint="use a trainer image with transformer-engine[pytorch], or leave it out for megatron-core's own layers",
        )
    return str(requested)
