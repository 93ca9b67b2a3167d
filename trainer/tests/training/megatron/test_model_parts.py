"""Rotary embeddings, slices of tensors, options: against transformers, and back and forth."""

from typing import Any

import pytest
import torch
from rljob_api.errors import UserError
from rljob_api.v1alpha1.trainer import Recompute
from rljob_trainer.export.architecture import architecture_of
from rljob_trainer.export.mapping import entries
from rljob_trainer.training.megatron.layout import Layout, join, slice_of
from rljob_trainer.training.megatron.options import model_options, recompute_options
from rljob_trainer.training.megatron.rope import angles, inverse_frequencies, rotate
from transformers import LlamaConfig, Qwen2Config, Qwen3MoeConfig

SHAPE: dict[str, Any] = {
    "vocab_size": 50, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2,
}  # fmt: skip
LLAMA3 = {
    "rope_type": "llama3", "rope_theta": 500000.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}  # fmt: skip


def moe(**options: Any) -> Qwen3MoeConfig:
    """A Qwen3-MoE config."""
    return Qwen3MoeConfig(
        **SHAPE, head_dim=8, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=16, **options
    )


@pytest.mark.parametrize(
    "config",
    [
        Qwen2Config(**SHAPE, rope_parameters={"rope_type": "default", "rope_theta": 1e6}),
        LlamaConfig(**SHAPE, max_position_embeddings=512, rope_parameters=LLAMA3),
    ],
    ids=["default", "llama3"],
)
def test_rotation_is_that_of_transformers(config: Any) -> None:
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding, apply_rotary_pos_emb

    config.head_dim = 8
    states = torch.randn(7, 4, 8, generator=torch.Generator().manual_seed(0))
    positions = torch.tensor([0, 1, 2, 0, 1, 90, 91])
    cos, sin = LlamaRotaryEmbedding(config)(states, positions[None])
    expected, _ = apply_rotary_pos_emb(states.transpose(0, 1)[None], states.transpose(0, 1)[None], cos, sin)
    mine = rotate(states, *angles(positions, *inverse_frequencies(config)))
    torch.testing.assert_close(mine, expected[0].transpose(0, 1), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("config", [Qwen2Config(**SHAPE), moe()], ids=["dense", "experts"])
def test_slices_of_tensor_ranks_put_together_are_the_tensor(config: Any) -> None:
    arch = architecture_of(config)
    draw = torch.Generator().manual_seed(1)
    for entry in entries(arch):
        whole = torch.randn(entry.shape(arch), generator=draw)
        slices = [slice_of(entry, whole, rank, 2) for rank in range(2)]
        assert torch.equal(join(entry, slices), whole), entry.name


def test_a_rank_holds_the_same_rows_of_gate_and_up() -> None:
    arch = architecture_of(Qwen2Config(**SHAPE))
    entry = next(entry for entry in entries(arch) if entry.kind == "gate_up")
    gate, up = torch.arange(48)[:, None].float(), 100 + torch.arange(48)[:, None].float()
    part = slice_of(entry, torch.cat([gate, up]), 1, 2)
    assert part[:, 0].tolist() == [*range(24, 48), *range(124, 148)]


def test_options_follow_the_config() -> None:
    config = moe(norm_topk_prob=False, mlp_only_layers=[0])
    options = model_options(architecture_of(config), config, Layout(4, tensor=2, expert=2, sequence=True), {})
    assert options["num_moe_experts"] == 4
    assert options["moe_layer_freq"] == [0, 1]
    assert options["moe_router_pre_softmax"] is True
    assert options["qk_layernorm"] is True
    assert options["sequence_parallel"] is True
    assert options["kv_channels"] == 8


def test_megatron_args_go_through_but_may_not_set_what_follows_from_the_spec() -> None:
    config = Qwen2Config(**SHAPE)
    arch = architecture_of(config)
    assert model_options(arch, config, Layout(1), {"bias_dropout_fusion": False})["bias_dropout_fusion"] is False
    with pytest.raises(UserError, match=r"megatronArgs\.hidden_size"):
        model_options(arch, config, Layout(1), {"hidden_size": 7})


def test_gradient_checkpointing_means_whole_layers_unless_the_spec_says_otherwise() -> None:
    none, selective = Recompute(), Recompute(granularity="selective")
    assert recompute_options(none)["recompute_granularity"] is None
    assert recompute_options(none, force_full=True)["recompute_granularity"] == "full"
    assert recompute_options(selective, force_full=True)["recompute_granularity"] == "selective"
    block = recompute_options(Recompute(granularity="full", method="block", num_layers=3))
    assert (block["recompute_method"], block["recompute_num_layers"]) == ("block", 3)
