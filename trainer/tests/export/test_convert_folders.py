"""Whole models from Hugging Face folders to Megatron checkpoints and back."""

import json
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from rljob_api.errors import UserError
from rljob_trainer.export.architecture import architecture_of
from rljob_trainer.export.hf_folder import HfFolder, HfWriter
from rljob_trainer.export.mapping import hf_to_megatron
from rljob_trainer.export.places import extra_states
from rljob_trainer.export.run import hf_to_torch_dist, torch_dist_to_hf
from rljob_trainer.export.torch_dist import CheckpointReader
from torch.distributed.checkpoint import FileSystemReader, load

from .tiny_models import CONFIGS, read_folder, save_model


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("models")
    for name in CONFIGS:
        save_model(name, root / name)
        (root / name / "tokenizer_config.json").write_text("{}")
    return root


def contents(folder: Path) -> dict[str, Any]:
    """Everything that torch.distributed.checkpoint finds in a checkpoint."""
    metadata = FileSystemReader(folder / "release").read_metadata()
    state: dict[str, Any] = {
        key: torch.empty(meta.size, dtype=meta.properties.dtype) if hasattr(meta, "size") else None
        for key, meta in metadata.state_dict_metadata.items()
    }
    load(state, storage_reader=FileSystemReader(folder / "release"), no_dist=True)
    return state


@pytest.mark.parametrize("name", CONFIGS)
def test_a_round_trip_is_exact_to_the_bit(name: str, models: Path, tmp_path: Path) -> None:
    told: list[tuple[int, int]] = []
    there = hf_to_torch_dist(
        models / name, tmp_path / "mcore", tensor_parallel=2, progress=lambda done, total: told.append((done, total))
    )
    assert (there.architecture, there.vocab) == (CONFIGS[name]["model_type"], 256)
    assert told[-1][0] == told[-1][1] > 0
    torch_dist_to_hf(tmp_path / "mcore", tmp_path / "hf")
    before, after = read_folder(models / name), read_folder(tmp_path / "hf")
    assert set(after) == set(before)
    assert all(after[key].dtype == torch.bfloat16 and torch.equal(after[key], before[key]) for key in before)
    assert json.loads((tmp_path / "hf/config.json").read_text()) == json.loads(
        (models / name / "config.json").read_text()
    )
    assert (tmp_path / "hf/tokenizer_config.json").is_file()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["hf", "mcore"]


def test_the_checkpoint_is_laid_out_as_megatron_asks_for_it(models: Path, tmp_path: Path) -> None:
    hf_to_torch_dist(models / "qwen3_moe", tmp_path / "mcore")
    arch = architecture_of(CONFIGS["qwen3_moe"])
    expected = hf_to_megatron(arch, read_folder(models / "qwen3_moe"), padded_vocab_size=128)
    stored = contents(tmp_path / "mcore")
    # Layers and experts are stacked: [layers, experts, …].
    fc1 = stored["decoder.layers.mlp.experts.experts.linear_fc1.weight"]
    assert fc1.shape == (2, 4, 48, 32)
    assert torch.equal(fc1[1, 3], expected["decoder.layers.1.mlp.experts.local_experts.3.linear_fc1.weight"])
    assert stored["decoder.layers.self_attention.linear_qkv.weight"].shape == (2, 64, 32)
    assert stored["decoder.layers.self_attention.q_layernorm.weight"].shape == (2, 8)
    assert stored["embedding.word_embeddings.weight"].shape == (128, 32)
    # Either layer spec finds the second norm under its own name.
    assert torch.equal(
        stored["decoder.layers.pre_mlp_layernorm.weight"], stored["decoder.layers.mlp.linear_fc1.layer_norm_weight"]
    )
    assert "decoder.layers.self_attention.linear_qkv._extra_state/shard_1_2" in stored
    assert "decoder.layers.mlp.experts.experts.linear_fc2._extra_state/shard_1.3_2.4" in stored
    assert set(extra_states(arch, stacked=True)) <= set(stored)
    assert (tmp_path / "mcore/latest_checkpointed_iteration.txt").read_text() == "release"
    form = json.loads((tmp_path / "mcore/release/metadata.json").read_text())
    assert form["sharded_backend"] == "torch_dist"
    common = torch.load(tmp_path / "mcore/release/common.pt", weights_only=True)
    assert common["content_metadata"] == {"singleton_local_shards": False, "non_homogeneous_layers": False}


def test_layers_that_differ_are_numbered(models: Path, tmp_path: Path) -> None:
    hf_to_torch_dist(models / "qwen3_moe-mixed", tmp_path / "mcore")
    stored = contents(tmp_path / "mcore")
    assert stored["decoder.layers.0.mlp.experts.experts.linear_fc1.weight"].shape == (4, 48, 32)
    assert stored["decoder.layers.1.mlp.linear_fc1.weight"].shape == (96, 32)
    assert "decoder.layers.0.mlp.linear_fc1._extra_state/shard_0_1" not in stored


def test_the_vocabulary_of_the_way_back_can_be_chosen(models: Path, tmp_path: Path) -> None:
    hf_to_torch_dist(models / "qwen2", tmp_path / "mcore", divisible_by=64)
    converted = torch_dist_to_hf(tmp_path / "mcore", tmp_path / "hf", vocab_size=80)
    assert converted.vocab == 80
    assert json.loads((tmp_path / "hf/config.json").read_text())["vocab_size"] == 80
    rows = read_folder(tmp_path / "hf")["model.embed_tokens.weight"]
    assert rows.shape == (80, 32)
    assert not rows[70:].any()
    with pytest.raises(UserError, match=r"128 rows, fewer than the vocabulary of 200.*"):
        torch_dist_to_hf(tmp_path / "mcore", tmp_path / "other", vocab_size=200)
    with pytest.raises(UserError, match="--vocab-size 10 is less than the config's vocab_size 70"):
        hf_to_torch_dist(models / "qwen2", tmp_path / "small", vocab_size=10, divisible_by=1)
    assert not (tmp_path / "other").exists()


def test_what_stands_in_the_way_is_said(models: Path, tmp_path: Path) -> None:
    def fails(message: str, **options: Any) -> None:
        with pytest.raises(UserError, match=message):
            hf_to_torch_dist(**{"source": models / "llama", "target": tmp_path / "out", **options})

    fails("has no config.json", source=tmp_path)
    bare = tmp_path / "bare"
    bare.mkdir()
    (bare / "config.json").write_text(json.dumps(CONFIGS["llama"]))
    fails("has neither model.safetensors nor", source=bare)
    (bare / "model.safetensors").write_bytes(b"no tensors")
    fails("cannot be read", source=bare)
    (bare / "model.safetensors").unlink()
    (bare / "model.safetensors.index.json").write_text('{"weight_map": {"a": "model-1.safetensors"}}')
    fails("has no model-1.safetensors", source=bare)
    other = tmp_path / "other"
    save_model("qwen2", other)
    (other / "config.json").write_text(json.dumps(CONFIGS["llama"]))
    fails("6 tensors have no place in a llama model", source=other)
    (tmp_path / "out").mkdir()
    (tmp_path / "out/mine.txt").write_text("kept")
    fails("is there already and not empty")
    assert (tmp_path / "out/mine.txt").exists()
    hf_to_torch_dist(models / "llama", tmp_path / "out", overwrite=True)
    assert not (tmp_path / "out/mine.txt").exists()
    with pytest.raises(UserError, match="is no Megatron checkpoint"):
        torch_dist_to_hf(bare, tmp_path / "back")


def test_a_damaged_checkpoint_is_refused(models: Path, tmp_path: Path) -> None:
    mcore = tmp_path / "mcore"
    hf_to_torch_dist(models / "llama", mcore)
    with pytest.raises(UserError, match=r"has no tensor .*q_layernorm.*another model's"):
        torch_dist_to_hf(mcore, tmp_path / "hf", hf_config=models / "qwen3")
    metadata = mcore / "release/.metadata"
    whole = metadata.read_bytes()
    metadata.write_bytes(whole[:-20])
    with pytest.raises(UserError, match=r"\.metadata cannot be read"):
        torch_dist_to_hf(mcore, tmp_path / "hf")
    # Opening a checkpoint runs no code of whoever made it.
    metadata.write_bytes(pickle.dumps(print))
    with pytest.raises(UserError, match=r"refers to builtins\.print"):
        CheckpointReader(mcore, architecture_of(CONFIGS["llama"]))
    metadata.unlink()
    with pytest.raises(UserError, match="the checkpoint is not whole"):
        torch_dist_to_hf(mcore, tmp_path / "hf")
    assert not (tmp_path / "hf").exists()


def test_large_models_are_written_in_shards(tmp_path: Path) -> None:
    tensors = {f"t{number}": torch.full((10,), float(number)) for number in range(5)}
    writer = HfWriter(tmp_path / "model", shard_bytes=100)
    for name, tensor in tensors.items():
        writer.add(name, tensor)
    writer.close()
    assert len(list((tmp_path / "model").glob("model-*-of-00003.safetensors"))) == 3
    with HfFolder(tmp_path / "model") as folder:
        assert folder.names() == set(tensors)
        assert all(torch.equal(folder.get(name), tensor) for name, tensor in tensors.items())
        assert folder.rows("t3", 2, 4).tolist() == [3.0, 3.0]
