"""The e5 encoder on a small random model in the real file format."""

import json
from pathlib import Path

import numpy as np
import pytest
from rljob_api.errors import UserError
from rljob_api.v1alpha1.retriever import EncoderSpec, RetrieverSpec
from rljob_trainer.retriever.build import build_index
from rljob_trainer.retriever.e5 import E5Encoder
from rljob_trainer.retriever.encoder import load_encoder
from rljob_trainer.retriever.search import load_searcher


def random_bert(folder: Path, seed: int, words: list[str]) -> None:
    import torch
    from transformers import BertConfig, BertModel, BertTokenizerFast

    folder.mkdir()
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *words]
    (folder / "vocab.txt").write_text("\n".join(vocabulary) + "\n", encoding="utf-8")
    BertTokenizerFast(str(folder / "vocab.txt")).save_pretrained(folder)
    torch.manual_seed(seed)
    config = BertConfig(
        vocab_size=len(vocabulary),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=64,
    )
    BertModel(config).save_pretrained(folder)


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("e5")
    words = ["query", "passage", ":", "a", "b", "c", "long", "text", "quick", "brown", "fox"]
    random_bert(directory / "encoder", 0, words)
    random_bert(directory / "other", 1, words)
    return directory


def make(job: Path, **fields: object) -> E5Encoder:
    encoder = load_encoder(EncoderSpec.model_validate({"path": "encoder", "maxLength": 16} | fields), str(job))
    assert isinstance(encoder, E5Encoder)
    return encoder


def test_vectors_are_the_masked_mean_of_the_prefixed_text(job: Path) -> None:
    import torch
    from transformers import AutoModel, AutoTokenizer

    encoder = make(job)
    texts = ["a b", "long long long text a b c a b c", "c"]
    tokenizer, model = AutoTokenizer.from_pretrained(job / "encoder"), AutoModel.from_pretrained(job / "encoder").eval()
    for prefix, vectors in (("query: ", encoder.encode_queries(texts)), ("passage: ", encoder.encode_passages(texts))):
        assert vectors.shape == (3, 32)
        for text, vector in zip(texts, vectors, strict=True):
            # One at a time there is no padding: the plain mean is the masked one.
            with torch.no_grad():
                batch = tokenizer(prefix + text, return_tensors="pt", truncation=True, max_length=16)
                mean = model(**batch).last_hidden_state[0].mean(0)
            assert np.allclose(vector, (mean / mean.norm()).numpy(), atol=1e-5)


def test_an_index_follows_weights_and_not_paths(job: Path) -> None:
    def retriever(**encoder: object) -> RetrieverSpec:
        fields = {"path": "encoder", "maxLength": 16} | encoder
        return RetrieverSpec.model_validate({"corpus": "c.jsonl", "index": {"path": "e5.index"}, "encoder": fields})

    rows = [{"id": str(n), "contents": f'"{word}"\ntext'} for n, word in enumerate(["a", "b", "quick brown fox"])]
    (job / "c.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    (job / "alias").symlink_to(job / "encoder")
    build_index(retriever(), str(job))
    assert len(load_searcher(retriever(path="alias"), str(job)).search(["quick fox"], 2)[0]) == 2
    with pytest.raises(UserError, match="of the same shape, but with other weights"):
        load_searcher(retriever(path="other"), str(job))
    with pytest.raises(UserError, match=r"another encoder .*prefix='passage: '.* than .*prefix=''"):
        load_searcher(retriever(passagePrefix=""), str(job))


def test_a_folder_that_is_no_encoder_is_named(job: Path) -> None:
    (job / "empty").mkdir()
    with pytest.raises(UserError, match=r"spec.retriever.encoder.path: empty cannot be loaded"):
        make(job, path="empty")
    (job / "broken").mkdir()
    (job / "broken/config.json").write_text(json.dumps({"model_type": "nonsense"}), encoding="utf-8")
    with pytest.raises(UserError, match="broken cannot be loaded"):
        make(job, path="broken")
