"""Where the first weights come from; each form of a checkpoint gives the same tensors."""

from pathlib import Path

import pytest
import torch
from rljob_api.v1alpha1.checkpoint import CheckpointSpec
from rljob_api.v1alpha1.model import ModelSpec
from rljob_trainer.export.architecture import architecture_of
from rljob_trainer.export.mapping import entries
from rljob_trainer.export.run import hf_to_torch_dist
from rljob_trainer.training.megatron.initial_weights import actor_path, open_weights
from transformers import AutoConfig, Qwen2Config, Qwen2ForCausalLM


def test_an_empty_folder_to_load_means_the_reference_then_the_model(tmp_path: Path) -> None:
    spec = CheckpointSpec(load="actor", ref_load="reference")
    assert actor_path(CheckpointSpec(), tmp_path) is None
    assert actor_path(spec, tmp_path) == "reference"
    (tmp_path / "actor").mkdir()
    assert actor_path(spec, tmp_path) == "reference"
    (tmp_path / "actor" / "config.json").touch()
    assert actor_path(spec, tmp_path) == "actor"


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_converted_checkpoint_gives_the_tensors_of_the_hugging_face_folder(tmp_path: Path) -> None:
    Qwen2ForCausalLM(
        Qwen2Config(
            vocab_size=50, hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2,
            num_key_value_heads=1,
        )
    ).save_pretrained(tmp_path / "hf")  # fmt: skip
    hf_to_torch_dist(tmp_path / "hf", tmp_path / "dist")
    arch = architecture_of(AutoConfig.from_pretrained(tmp_path / "hf"))
    spec = ModelSpec(path="hf")
    with (
        open_weights(spec, tmp_path, None, arch, seed=0) as plain,
        open_weights(spec, tmp_path, None, arch, seed=0, path="dist") as converted,
    ):
        for entry in entries(arch):
            rows = arch.vocab if entry.kind == "vocab" else None
            assert torch.equal(plain(entry), converted(entry)[:rows]), entry.name
