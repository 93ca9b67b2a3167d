"""Names and layouts: what Megatron's tensors are made of."""

from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from rljob_api.errors import UserError
from rljob_trainer.export.architecture import Architecture, architecture_of
from rljob_trainer.export.layout import fuse_gate_up, fuse_qkv, padded_vocab, split_gate_up, split_qkv
from rljob_trainer.export.mapping import canonical_name, entries, hf_to_megatron, megatron_to_hf

from .tiny_models import CONFIGS, read_folder, save_model


def shape(heads: int, groups: int, head_dim: int) -> Architecture:
    return architecture_of(
        {**CONFIGS["qwen2"], "num_attention_heads": heads, "num_key_value_heads": groups, "head_dim": head_dim}
    )


@pytest.mark.parametrize("name", CONFIGS)
def test_all_tensors_go_there_and_back_to_the_bit(name: str, tmp_path: Path) -> None:
    model = save_model(name, tmp_path)
    state = read_folder(tmp_path)
    arch = architecture_of(model.config)
    there = hf_to_megatron(model.config, state, padded_vocab_size=128)
    assert {tensor_name: tuple(tensor.shape) for tensor_name, tensor in there.items()} == {
        entry.name: entry.shape(arch, vocab=128) for entry in entries(arch)
    }
    assert "output_layer.weight" not in there or not arch.tied
    back = megatron_to_hf(model.config, there)
    assert set(back) == set(state)
    assert all(torch.equal(back[key], state[key]) for key in state)
    # As transformers holds the experts in memory, too.
    again = hf_to_megatron(arch, dict(model.named_parameters()), padded_vocab_size=128)
    assert all(torch.equal(again[key], there[key]) for key in there)


@given(data=st.data())
def test_fused_projections_are_what_megatron_splits(data: st.DataObject) -> None:
    groups, per_group, dim = (data.draw(st.integers(1, 4)) for _ in range(3))
    arch = shape(groups * per_group, groups, dim)
    heads, hidden = groups * per_group, arch.hidden
    q, k, v = (torch.randn(count * dim, hidden) for count in (heads, groups, groups))
    x = torch.randn(3, hidden)
    # megatron-core: [s, (np + 2 ng) hn] → [s, ng, (np / ng + 2) hn] → queries, key, value of each group
    mixed = (x @ fuse_qkv(arch, q, k, v).T).view(3, groups, (per_group + 2) * dim)
    query, key, value = mixed.split([per_group * dim, dim, dim], dim=2)
    torch.testing.assert_close(query.reshape(3, heads * dim), x @ q.T)
    torch.testing.assert_close(key.reshape(3, groups * dim), x @ k.T)
    torch.testing.assert_close(value.reshape(3, groups * dim), x @ v.T)
    assert all(torch.equal(a, b) for a, b in zip(split_qkv(arch, fuse_qkv(arch, q, k, v)), (q, k, v), strict=True))
    assert all(torch.equal(a, b) for a, b in zip(split_gate_up(fuse_gate_up(k, v)), (k, v), strict=True))


@given(vocab=st.integers(1, 300_000), divisible=st.sampled_from([1, 64, 128]), ranks=st.sampled_from([1, 2, 8]))
def test_a_padded_vocabulary_is_the_next_multiple(vocab: int, divisible: int, ranks: int) -> None:
    rows = padded_vocab(vocab, divisible, ranks)
    assert rows % (divisible * ranks) == 0
    assert 0 <= rows - vocab < divisible * ranks


def test_padding_is_zero_and_cut_off_again(tmp_path: Path) -> None:
    model = save_model("qwen2", tmp_path)
    there = hf_to_megatron(model.config, read_folder(tmp_path), padded_vocab_size=256)
    assert not there["output_layer.weight"][70:].any()
    assert megatron_to_hf(model.config, there, vocab_size=72)["lm_head.weight"].shape[0] == 72
    with pytest.raises(UserError, match=r"embedding.* has 256 rows, fewer than the vocabulary of 300"):
        megatron_to_hf(model.config, there, vocab_size=300)


@pytest.mark.parametrize(
    ("live", "canonical"),
    [
        ("module.module.embedding.word_embeddings.weight", "embedding.word_embeddings.weight"),
        ("decoder.layers.0.input_layernorm.weight", "decoder.layers.2.self_attention.linear_qkv.layer_norm_weight"),
        ("decoder.layers.1.mlp.linear_fc1.layer_norm_weight", "decoder.layers.3.pre_mlp_layernorm.weight"),
        ("decoder.layers.0.mlp.experts.linear_fc1.weight1",
         "decoder.layers.2.mlp.experts.local_experts.5.linear_fc1.weight"),
        ("decoder.layers.0.mlp.experts.local_experts.1.linear_fc2.weight",
         "decoder.layers.2.mlp.experts.local_experts.5.linear_fc2.weight"),
        ("decoder.layers.0.mlp.router.weight", "decoder.layers.2.mlp.router.weight"),
    ],
)  # fmt: skip
def test_names_of_live_models_are_known(live: str, canonical: str) -> None:
    arch = architecture_of({**CONFIGS["qwen3_moe"], "num_hidden_layers": 4})
    assert canonical_name(arch, live, layer_offset=2, expert_offset=4) == canonical


def test_a_dense_models_second_norm_has_its_name() -> None:
    arch = architecture_of(CONFIGS["qwen3"])
    assert canonical_name(arch, "decoder.layers.1.pre_mlp_layernorm.weight").endswith(
        "layers.1.mlp.linear_fc1.layer_norm_weight"
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "gemma3"}, "'gemma3' cannot be converted"),
        ({"attention_bias": True}, "attention_bias is true"),
        ({"hidden_size": None}, "hidden_size is None"),
        ({"num_key_value_heads": 3}, "4 is not a multiple of num_key_value_heads 3"),
    ],
)
def test_what_cannot_be_converted_is_said(change: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message) as raised:
        architecture_of({**CONFIGS["llama"], **change})
    if "model_type" in change:
        assert "llama, qwen2, qwen3, qwen3_moe" in str(raised.value.hint)


def test_another_models_tensors_are_refused(tmp_path: Path) -> None:
    model = save_model("qwen3", tmp_path)
    state = read_folder(tmp_path)
    there = hf_to_megatron(model.config, state)
    with pytest.raises(UserError, match=r"'model\.norm\.weight' is missing"):
        hf_to_megatron(model.config, {key: value for key, value in state.items() if key != "model.norm.weight"})
    with pytest.raises(UserError, match=r"no tensor 'decoder\.extra'"):
        megatron_to_hf(model.config, {**there, "decoder.extra": torch.zeros(1)})
    with pytest.raises(UserError, match=r"has shape \(96, 32\), the config asks for \(112, 32\)"):
        megatron_to_hf({**CONFIGS["qwen3"], "intermediate_size": 56}, there)
