"""`rljob convert` as its user meets it."""

import json
from pathlib import Path

import pytest
from rljob_cli.app import app
from typer.testing import CliRunner

pytest.importorskip("torch")
runner = CliRunner()
CONFIG = {
    "model_type": "llama",
    "vocab_size": 10,
    "hidden_size": 8,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "intermediate_size": 12,
}


def write_model(folder: Path) -> None:
    import torch
    from rljob_trainer.export.architecture import architecture_of
    from rljob_trainer.export.mapping import entries, megatron_to_hf
    from safetensors.torch import save_file

    arch = architecture_of(CONFIG)
    state = {entry.name: torch.randn(entry.shape(arch)) for entry in entries(arch)}
    folder.mkdir()
    hf = {name: tensor.contiguous() for name, tensor in megatron_to_hf(arch, state).items()}
    save_file(hf, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(CONFIG))


def test_there_and_back(tmp_path: Path) -> None:
    from safetensors.torch import load_file

    write_model(tmp_path / "hf")
    there = runner.invoke(app, ["convert", str(tmp_path / "hf"), str(tmp_path / "mcore")])
    assert there.exit_code == 0, there.output
    assert "Megatron torch_dist, llama, 9 tensors, 128 rows" in " ".join(there.stdout.split())
    back = runner.invoke(app, ["convert", str(tmp_path / "mcore"), str(tmp_path / "back"), "--to", "hf", "-o", "json"])
    assert back.exit_code == 0, back.output
    assert json.loads(back.stdout) == {
        "target": str(tmp_path / "back"),
        "format": "Hugging Face",
        "architecture": "llama",
        "tensors": 12,
        "vocabRows": 10,
    }
    before, after = (load_file(tmp_path / folder / "model.safetensors") for folder in ("hf", "back"))
    assert {name: value.tolist() for name, value in after.items()} == {n: v.tolist() for n, v in before.items()}


def test_mistakes_are_one_message(tmp_path: Path) -> None:
    write_model(tmp_path / "hf")

    def message(*arguments: str) -> str:
        result = runner.invoke(app, ["convert", *arguments])
        assert result.exit_code == 2
        assert "Traceback" not in result.output
        return " ".join(result.stderr.split())

    source, target = str(tmp_path / "hf"), str(tmp_path / "out")
    assert "there is no such folder" in message(str(tmp_path / "nowhere"), target)
    assert "is no Megatron checkpoint" in message(source, target, "--to", "hf")
    assert "is there already and not empty" in message(source, source)
    (tmp_path / "hf/config.json").write_text(json.dumps({**CONFIG, "model_type": "gpt2"}))
    assert "'gpt2' cannot be converted hint: supported: llama, qwen2, qwen3, qwen3_moe" in message(source, target)
