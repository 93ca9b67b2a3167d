"""Index and search: exact, independent of batch mates, and refused when it does not fit."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from rljob_api.errors import UserError
from rljob_api.v1alpha1.retriever import EncoderSpec, IndexSpec, RetrieverSpec
from rljob_trainer.quickstart.demonstrations import QUERY_DIMENSION, Demonstrator
from rljob_trainer.quickstart.world import RELATIONS
from rljob_trainer.retriever.build import build_index
from rljob_trainer.retriever.encoder import load_encoder
from rljob_trainer.retriever.hashed import HashedEncoder
from rljob_trainer.retriever.ranking import tie_key
from rljob_trainer.retriever.search import DenseSearcher, load_searcher
from rljob_trainer.rollout.search_format import split_contents


def spec(
    dimension: int = QUERY_DIMENSION, build: str = "IfMissing", corpus: str = "world/corpus.jsonl"
) -> RetrieverSpec:
    return RetrieverSpec(
        corpus=corpus,
        index=IndexSpec(path="index/test.index", build=build),  # type: ignore[arg-type]
        encoder=EncoderSpec(type="hashed", dimension=dimension),
    )


@pytest.fixture(scope="module")
def built(world: Path) -> Path:
    build_index(spec(), str(world.parent))
    return world.parent


@pytest.fixture(scope="module")
def searcher(built: Path) -> DenseSearcher:
    return load_searcher(spec(), str(built))


def ids(searcher: DenseSearcher, queries: list[str], topk: int = 3) -> list[list[str]]:
    return [[hit.document["id"] for hit in found] for found in searcher.search(queries, topk)]


def test_the_named_fact_comes_first_and_an_entity_alone_finds_its_own(world: Path, searcher: DenseSearcher) -> None:
    entities = json.loads((world / "world.json").read_text(encoding="utf-8"))["entities"]
    firsts = []
    for entity in entities["train"] + entities["heldOut"]:
        queries = [f"{entity} {relation}" for relation in RELATIONS]
        *exact, alone = searcher.search([*queries, entity], 3)
        assert [split_contents(found[0].document["contents"])[0] for found in exact] == queries
        titles = [split_contents(hit.document["contents"])[0] for hit in alone]
        assert all(title.startswith(f"{entity} ") for title in titles)
        firsts.append(titles[0].split()[-1])
    # Which one comes first without the relation is as good as chance: no relation is found by naming none.
    assert all(firsts.count(relation) < 0.45 * len(firsts) for relation in RELATIONS)


def test_demonstrations_rank_as_the_index_does(world: Path, searcher: DenseSearcher) -> None:
    corpus = [json.loads(line) for line in (world / "corpus.jsonl").read_text(encoding="utf-8").splitlines()]
    demonstrator = Demonstrator(corpus, 3, 0.4, 0.75, 0.7)
    entities = json.loads((world / "world.json").read_text(encoding="utf-8"))["entities"]["train"]
    for entity in entities[:200]:
        for relation in ("", *RELATIONS):
            shown = [document["id"] for document in demonstrator.search(entity, relation)]
            assert ids(searcher, [f"{entity} {relation}".strip()]) == [shown]


def test_the_answer_does_not_depend_on_batch_mates(built: Path) -> None:
    titles = [split_contents(json.loads(line)["contents"])[0] for line in (built / "world/corpus.jsonl").open()][:150]
    alone, together = load_searcher(spec(), str(built)), load_searcher(spec(), str(built))
    one_by_one = [found for title in titles for found in alone.search([title], 3)]
    assert together.search(titles, 3) == one_by_one
    assert load_searcher(spec(), str(built)).search(titles[::-1], 5)[-1][:3] == one_by_one[0]


def test_a_query_without_words_finds_nothing(searcher: DenseSearcher) -> None:
    assert searcher.search(["", "  ", "?!"], 3) == [[], [], []]


def test_equal_documents_are_ordered_by_the_hash_of_their_id(tmp_path: Path) -> None:
    (tmp_path / "world").mkdir()
    rows = [{"id": f"d{number}", "contents": '"Same Title"\nsame text'} for number in range(60)]
    rows += [{"id": f"o{number}", "contents": f'"Other {number}"\ntext'} for number in range(40)]
    (tmp_path / "world/corpus.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    build_index(spec(), str(tmp_path))
    found = ids(load_searcher(spec(), str(tmp_path)), ["Same Title"], 5)
    assert found == [sorted((f"d{number}" for number in range(60)), key=tie_key)[:5]]


def test_topk_may_exceed_the_corpus(tmp_path: Path) -> None:
    (tmp_path / "world").mkdir()
    (tmp_path / "world/corpus.jsonl").write_text(
        '{"id": 1, "contents": "\\"A\\"\\nb"}\n\n{"id": 2, "contents": "\\"C\\"\\nd"}'
    )
    build_index(spec(), str(tmp_path))
    assert ids(load_searcher(spec(), str(tmp_path)), ["A"], 10) == [[1, 2]]


def test_building_again_does_nothing_and_a_changed_corpus_is_indexed_anew(world: Path, tmp_path: Path) -> None:
    (tmp_path / "world").mkdir()
    shutil.copy(world / "corpus.jsonl", tmp_path / "world/corpus.jsonl")
    index = build_index(spec(), str(tmp_path))
    before = index.stat().st_mtime_ns
    build_index(spec(), str(tmp_path))
    assert index.stat().st_mtime_ns == before
    with (tmp_path / "world/corpus.jsonl").open("a", encoding="utf-8") as file:
        file.write('{"id":"new","contents":"\\"Brand New\\"\\nthing"}\n')
    with pytest.raises(UserError, match="is not the corpus that"):
        load_searcher(spec(), str(tmp_path))
    build_index(spec(), str(tmp_path))
    assert ids(load_searcher(spec(), str(tmp_path)), ["Brand New"], 1) == [["new"]]


def test_an_index_of_another_encoder_is_refused(built: Path) -> None:
    with pytest.raises(UserError, match=r"built with another encoder \(hashed-1:dimension=256.*dimension=128"):
        load_searcher(spec(128), str(built))
    with pytest.raises(UserError, match="built with another encoder"):
        build_index(spec(128), str(built))


def test_an_index_without_a_manifest_is_trusted_when_its_shape_fits(built: Path, tmp_path: Path) -> None:
    shutil.copytree(built / "world", tmp_path / "world")
    (tmp_path / "index").mkdir()
    shutil.copy(built / "index/test.index", tmp_path / "index/test.index")
    build_index(spec(build="Never"), str(tmp_path))
    assert load_searcher(spec(build="Never"), str(tmp_path)).search(["Zafo"], 1)
    with pytest.raises(UserError, match=r"has vectors of 256 components, but spec.retriever.encoder gives 128"):
        load_searcher(spec(128), str(tmp_path))
    with (tmp_path / "world/corpus.jsonl").open("a", encoding="utf-8") as file:
        file.write('{"id":"new","contents":"x"}\n')
    with pytest.raises(UserError, match=r"has 1600 vectors, but the corpus .* has 1601 passages"):
        load_searcher(spec(), str(tmp_path))


@pytest.mark.parametrize(
    ("corpus", "message"),
    [
        (None, r"spec.retriever.corpus: world/corpus.jsonl: .* does not exist \(relative paths start at"),
        ("", "has no passages"),
        ('{"id": 1, "contents": "a"}\n{"id": 2, ', "line 2: not valid JSON"),
        ('{"id": 1, "text": "a"}\n', "line 1: a passage needs `id` and `contents`"),
    ],
)
def test_a_corpus_that_cannot_be_indexed_is_named(tmp_path: Path, corpus: str | None, message: str) -> None:
    (tmp_path / "world").mkdir()
    if corpus is not None:
        (tmp_path / "world/corpus.jsonl").write_text(corpus, encoding="utf-8")
    with pytest.raises(UserError, match=message):
        build_index(spec(), str(tmp_path))
    assert not list((tmp_path / "index").glob("*.index")) if (tmp_path / "index").is_dir() else True


def test_gpu_without_gpu_support_is_refused(built: Path) -> None:
    wanted = spec()
    wanted.index.gpu = True
    with pytest.raises(UserError, match=r"spec.retriever.index.gpu: true, but"):
        load_searcher(wanted, str(built))


def test_damaged_index_is_refused(built: Path, tmp_path: Path) -> None:
    shutil.copytree(built, tmp_path / "job")
    (tmp_path / "job/index/test.index").write_bytes(b"not an index at all")
    with pytest.raises(UserError, match="is not a faiss index"):
        load_searcher(spec(), str(tmp_path / "job"))


def test_hashed_vectors_do_not_depend_on_the_batch() -> None:
    encoder = HashedEncoder(64)
    texts = ['"Zafo Miru mentor"\nKelo Tani', "a b c", "", "Ein längerer Satz mit Wörtern, 42 davon"]
    together = encoder.encode_passages(texts)
    assert np.array_equal(together, np.concatenate([encoder.encode_passages([text]) for text in texts]))
    assert np.allclose(np.linalg.norm(together, axis=1), [1, 1, 0, 1])
    assert np.array_equal(encoder.encode_queries(["Zafo's mentor"]), encoder.encode_queries(["Zafo mentor"]))
    with pytest.raises(UserError, match=r"encoder.dimension: .* multiple of 8, not 100"):
        load_encoder(EncoderSpec(type="hashed", dimension=100), ".")
