"""Parameters and memory in `rljob plan`."""

import json
from pathlib import Path

import pytest
from rljob_api.v1alpha1.job import RLJob
from rljob_cli.estimate import human, memory_of, shape_of

INIT = {"hiddenSize": 64, "intermediateSize": 160, "numHiddenLayers": 3, "numAttentionHeads": 4}


def job(**model: object) -> RLJob:
    return RLJob.model_validate({"metadata": {"name": "a"}, "spec": {"model": model}})


@pytest.mark.slow
def test_parameters_of_a_random_init_are_those_of_transformers(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.Qwen2Config(
        vocab_size=100,
        hidden_size=64,
        intermediate_size=160,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        tie_word_embeddings=False,
    )
    model = transformers.Qwen2ForCausalLM(config)
    vocabulary = {f"t{number}": number for number in range(98)}
    added = [{"id": 98, "content": "<a>"}, {"id": 99, "content": "<b>"}]
    (tmp_path / "tokenizer.json").write_text(json.dumps({"model": {"vocab": vocabulary}, "added_tokens": added}))
    shape = shape_of(job(tokenizerPath=str(tmp_path), randomInit=INIT | {"numKeyValueHeads": 2}), [Path()])
    assert shape
    assert shape.parameters == sum(parameter.numel() for parameter in model.parameters())


def test_published_sizes_from_their_configs(tmp_path: Path) -> None:
    # Qwen/Qwen2.5-0.5B: 494,032,768 parameters.
    config = {
        "model_type": "qwen2",
        "hidden_size": 896,
        "intermediate_size": 4864,
        "num_hidden_layers": 24,
        "num_attention_heads": 14,
        "num_key_value_heads": 2,
        "vocab_size": 151936,
        "tie_word_embeddings": True,
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    shape = shape_of(job(path="."), [tmp_path])
    assert shape
    assert shape.parameters == 494_032_768


def test_no_estimate_of_what_is_not_here(tmp_path: Path) -> None:
    assert shape_of(job(path="Qwen/Qwen2.5-3B"), [tmp_path]) is None
    (tmp_path / "config.json").write_text('{"model_type": "mamba"}')
    assert shape_of(job(path="."), [tmp_path]) is None


def test_ranks_share_weights_and_moments() -> None:
    one = job(tokenizerPath="t", randomInit=INIT)
    four = one.model_copy(deep=True)
    four.spec.trainer.replicas = 4
    shape = shape_of(one, [])
    assert shape
    assert memory_of(one.spec, shape).optimizer == 8 * shape.parameters
    assert memory_of(four.spec, shape).rank_total * 4 == pytest.approx(memory_of(one.spec, shape).rank_total, rel=0.01)


def test_bytes_for_people() -> None:
    assert [human(size) for size in (0, 1023, 1536, 3 << 30)] == ["0 B", "1023 B", "1.5 KiB", "3.0 GiB"]
