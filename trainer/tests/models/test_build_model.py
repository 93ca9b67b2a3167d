"""The policy and its tokenizer from `spec.model`, and what is said when they cannot be had."""

from pathlib import Path
from typing import Any

import pytest
import torch
from rljob_api.errors import UserError
from rljob_api.v1alpha1.model import ModelSpec
from rljob_trainer.models import build_config, build_model, end_of_sequence_ids, load_tokenizer
from rljob_trainer.models.hf_export import save_hf
from rljob_trainer.weights import weights_digest

from trainer.tests.training.tiny import VOCABULARY, write_tokenizer

SHAPE = {"hiddenSize": 16, "intermediateSize": 24, "numHiddenLayers": 1, "numAttentionHeads": 2, "numKeyValueHeads": 1}


def spec(**fields: Any) -> ModelSpec:
    return ModelSpec.model_validate({"dtype": "float32", **fields})


@pytest.fixture
def job_dir(tmp_path: Path) -> Path:
    write_tokenizer(tmp_path)
    return tmp_path


def test_random_weights_are_those_of_the_seed_and_leave_the_generator_alone(job_dir: Path) -> None:
    model = spec(randomInit=SHAPE, tokenizerPath="tokenizer")
    tokenizer = load_tokenizer(model, job_dir)
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    first, second, other = (build_model(model, job_dir, tokenizer, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(torch.rand(1), expected)
    digests = [weights_digest(dict(m.named_parameters())) for m in (first, second, other)]
    assert digests[0] == digests[1] != digests[2]
    assert first.config.vocab_size == len(tokenizer) == VOCABULARY
    assert first.config.eos_token_id == tokenizer.eos_token_id == 1


def test_what_ends_a_sequence_is_said_by_config_tokenizer_and_generation_config(job_dir: Path) -> None:
    made = spec(randomInit=SHAPE, tokenizerPath="tokenizer")
    tokenizer = load_tokenizer(made, job_dir)
    model = build_model(made, job_dir, tokenizer)
    assert end_of_sequence_ids(made, job_dir, model.config, tokenizer) == [1]
    save_hf(model.config, type(model).__name__, dict(model.named_parameters()), tokenizer, job_dir / "model")
    from_path = spec(path="model")

    def ends(spec: ModelSpec) -> list[int]:
        return end_of_sequence_ids(spec, job_dir, build_config(spec, job_dir, tokenizer), tokenizer)

    (job_dir / "model" / "generation_config.json").unlink(missing_ok=True)
    assert ends(from_path) == [1]
    (job_dir / "model" / "generation_config.json").write_text('{"eos_token_id": [1, 7]}')
    assert ends(from_path) == [1, 7]
    assert ends(spec(path="model", overrides={"eos_token_id": [3]})) == [1, 3], "the job has the last word"


def test_an_export_is_loaded_again_to_the_bit(job_dir: Path) -> None:
    for tied in (False, True):
        model_spec = spec(randomInit={**SHAPE, "tieWordEmbeddings": tied}, tokenizerPath="tokenizer")
        tokenizer = load_tokenizer(model_spec, job_dir)
        model = build_model(model_spec, job_dir, tokenizer, seed=3)
        weights = {name: value.detach() for name, value in model.named_parameters()}
        for _ in range(2):  # a second export replaces the first
            save_hf(model.config, type(model).__name__, weights, tokenizer, job_dir / "model")
        assert sorted(p.name for p in job_dir.iterdir()) == ["model", "tokenizer"]
        from_path = spec(path="model")
        again = build_model(from_path, job_dir, load_tokenizer(from_path, job_dir))
        assert weights_digest(dict(again.named_parameters())) == weights_digest(weights)
        shape_alone = build_model(from_path, job_dir, tokenizer, load=False, seed=9)
        assert weights_digest(dict(shape_alone.named_parameters())) != weights_digest(weights)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"randomInit": {**SHAPE, "hiddenSize": 15}}, "hiddenSize 15 must be a multiple of numAttentionHeads 2"),
        ({"randomInit": {**SHAPE, "hiddenSize": 6}}, "heads of 3; rotary embeddings need an even size"),
        (
            {"randomInit": {**SHAPE, "numKeyValueHeads": 3}},
            "numAttentionHeads 2 must be a multiple of numKeyValueHeads 3",
        ),
        (
            {"randomInit": SHAPE, "overrides": {"rope_thetta": 1}},
            "rope_thetta: the config of a qwen2 model has no such",
        ),
        ({"path": "./missing"}, "the folder './missing' is not there"),
        ({"path": "tokenizer"}, "has no config.json"),
        ({}, "path is required"),
    ],
)
def test_models_that_cannot_be_built(job_dir: Path, fields: dict[str, Any], message: str) -> None:
    model = spec(tokenizerPath="tokenizer", **fields)
    with pytest.raises(UserError) as caught:
        build_model(model, job_dir, load_tokenizer(model, job_dir))
    assert message in str(caught.value)


def test_weights_that_are_no_weights(job_dir: Path) -> None:
    model_spec = spec(randomInit=SHAPE, tokenizerPath="tokenizer")
    tokenizer = load_tokenizer(model_spec, job_dir)
    model = build_model(model_spec, job_dir, tokenizer)
    save_hf(model.config, "Qwen2ForCausalLM", dict(model.named_parameters()), tokenizer, job_dir / "model")
    (job_dir / "model" / "model.safetensors").unlink()
    with pytest.raises(UserError, match="no weights could be loaded from 'model'"):
        build_model(spec(path="model"), job_dir, tokenizer)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"randomInit": SHAPE}, "tokenizerPath is required with"),
        ({"randomInit": SHAPE, "tokenizerPath": "nowhere/at/all"}, "the folder 'nowhere/at/all' is not there"),
        ({"path": "empty"}, "spec.model.path: the folder 'empty' has no tokenizer_config.json"),
    ],
)
def test_tokenizers_that_cannot_be_had(job_dir: Path, fields: dict[str, Any], message: str) -> None:
    (job_dir / "empty").mkdir()
    with pytest.raises(UserError) as caught:
        load_tokenizer(spec(**fields), job_dir)
    assert message in str(caught.value)


def test_a_chat_template_of_the_manifest_replaces_the_tokenizers(job_dir: Path) -> None:
    tokenizer = load_tokenizer(spec(tokenizerPath="tokenizer", chatTemplate="{{ messages[0].content }}!"), job_dir)
    text = tokenizer.apply_chat_template([{"role": "user", "content": "hello"}], tokenize=False)
    assert text == "hello!"


def test_a_saved_tokenizer_is_loaded_as_itself_beside_a_model_of_another_family(tmp_path: Path) -> None:
    from rljob_api.v1alpha1.model import ModelSpec
    from rljob_trainer.models import load_tokenizer
    from rljob_trainer.models.tokenizer import save_tokenizer
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast, Qwen2Config

    words = Tokenizer(models.WordLevel({"<unk>": 0, "a": 1, "b": 2, "-": 3}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    mine = PreTrainedTokenizerFast(tokenizer_object=words, unk_token="<unk>")
    Qwen2Config().save_pretrained(tmp_path / "model")
    save_tokenizer(mine, tmp_path / "model")
    again = load_tokenizer(ModelSpec.model_validate({"path": "model"}), tmp_path)
    assert again.encode("a-b b") == mine.encode("a-b b") == [1, 3, 2, 0, 2]
