"""The made-up world: its splits, its questions, its demonstrations, its bytes."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rljob_trainer.quickstart.world import RELATIONS, prepare
from rljob_trainer.rollout.search_format import format_information, split_contents


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def facts_of(world: Path) -> dict[str, str]:
    """`entity relation` → value, as the corpus has it."""
    return dict(split_contents(passage["contents"]) for passage in read(world / "corpus.jsonl"))


def parts(question: str) -> tuple[str, list[str]]:
    entity, *relations = question.removeprefix("What is ").removesuffix("?").split("'s ")
    return entity, relations


def test_every_question_is_answered_by_following_the_corpus(world: Path) -> None:
    facts = facts_of(world)
    for split in ("train", "held_out"):
        rows = read(world / f"{split}.jsonl")
        assert len({row["question"] for row in rows}) == len(rows)
        for row in rows:
            value, relations = parts(row["question"])
            for relation in relations:
                value = facts[f"{value} {relation}"]
            assert row["golden_answers"] == row["reward_model"]["ground_truth"]["target"] == [value]
            assert row["data_source"] == f"madeup_{len(relations)}hop"
            assert row["prompt"] == [{"role": "user", "content": row["question"]}]


def test_half_of_the_questions_take_two_hops(world: Path) -> None:
    rows = read(world / "held_out.jsonl")
    two = sum(len(parts(row["question"])[1]) == 2 for row in rows)
    assert 0.35 < two / len(rows) < 0.65


def test_splits_share_no_entity_and_no_fact(world: Path) -> None:
    summary = json.loads((world / "world.json").read_text(encoding="utf-8"))
    train, held_out = set(summary["entities"]["train"]), set(summary["entities"]["heldOut"])
    assert len(train) == 300
    assert len(held_out) == 100
    assert not train & held_out
    for title, value in facts_of(world).items():
        entity, _, relation = title.rpartition(" ")
        assert relation in RELATIONS
        assert (entity in train) == (value in train)
    # Nothing that is trained on names a held-out entity.
    for name in ("train", "demonstrations"):
        text = (world / f"{name}.jsonl").read_text(encoding="utf-8")
        assert not [entity for entity in held_out if entity in text]


def test_ids_say_nothing_of_the_relation(world: Path) -> None:
    first: dict[str, str] = {}
    for passage in read(world / "corpus.jsonl"):
        entity, _, relation = split_contents(passage["contents"])[0].rpartition(" ")
        first.setdefault(entity, relation)
    counts = [list(first.values()).count(relation) for relation in RELATIONS]
    assert min(counts) > 0.5 * len(first) / len(RELATIONS)


def test_demonstrations_are_as_faulty_as_asked(world: Path) -> None:
    facts = facts_of(world)
    queries = named = right = correct_turns = 0
    rows = read(world / "demonstrations.jsonl")
    for row in rows:
        question, *segments = row["segments"]
        entity, relations = parts(question["text"])
        searches = [segment["text"] for segment in segments if segment["text"].startswith("<search>")]
        named += sum(query.split()[-1].removesuffix("</search>") in RELATIONS for query in searches)
        queries += len(searches)
        correct_turns += len(searches) == len(relations)
        for relation in relations:
            entity = facts[f"{entity} {relation}"]
        right += segments[-1]["text"] == f"<answer> {entity}</answer><eos>"
        assert [segment["train"] for segment in segments] == [True, False] * len(searches) + [True]
    assert named / queries == pytest.approx(0.4, abs=0.07)
    assert correct_turns / len(rows) == pytest.approx(0.75, abs=0.07)
    assert 0.05 < right / len(rows) < 0.5


def test_demonstrations_show_documents_as_a_rollout_does(world: Path) -> None:
    by_title = {split_contents(passage["contents"])[0]: passage for passage in read(world / "corpus.jsonl")}
    for row in read(world / "demonstrations.jsonl")[:50]:
        for segment in row["segments"]:
            if "<information>" in segment["text"]:
                titles = [line.split("(Title: ")[1].split(")")[0] for line in segment["text"].strip().splitlines()]
                assert len(titles) == 3
                assert segment["text"] == format_information([by_title[title] for title in titles])


@settings(max_examples=5, deadline=None)
@given(seed=st.integers(0, 2**31))
def test_the_same_seed_gives_the_same_bytes(seed: int, tmp_path_factory: pytest.TempPathFactory) -> None:
    arguments: dict[str, Any] = {
        "seed": seed,
        "entities": 60,
        "heldOutEntities": 20,
        "syllables": 12,
        "trainQuestions": 30,
        "heldOutQuestions": 20,
        "demonstrations": 20,
    }
    one, two, other = (tmp_path_factory.mktemp("world") for _ in range(3))
    prepare(one, **arguments)
    prepare(two, **arguments)
    prepare(other, **{**arguments, "seed": seed + 1})
    files = sorted(path.relative_to(one) for path in one.rglob("*") if path.is_file())
    assert len(files) == 7
    assert all((one / file).read_bytes() == (two / file).read_bytes() for file in files)
    assert (one / "world/train.jsonl").read_bytes() != (other / "world/train.jsonl").read_bytes()


def test_more_questions_leave_the_demonstrations_alone(world: Path, tmp_path: Path) -> None:
    arguments = json.loads((world / "world.json").read_text(encoding="utf-8"))["arguments"]
    prepare(tmp_path, **{**arguments, "trainQuestions": 310, "heldOutQuestions": 10})
    for name in ("corpus", "demonstrations"):
        assert (tmp_path / f"world/{name}.jsonl").read_bytes() == (world / f"{name}.jsonl").read_bytes()


def test_too_many_entities_are_refused_with_the_numbers(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"10 syllables give 90 names: entities \(400\)"):
        prepare(tmp_path, entities=400, heldOutEntities=10, syllables=10)
    with pytest.raises(ValueError, match="do not give 1000 different questions"):
        prepare(tmp_path, entities=10, heldOutEntities=4, syllables=12, trainQuestions=1000)
