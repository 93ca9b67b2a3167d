"""A seeded, made-up world in Search-R1's file formats: what the quickstart searches, asks and demonstrates.

Thousands of invented entities ("Zafo Miru"), each with a mentor, a home, a rival and a friend among the entities of
its own split. Questions take one hop ("What is Zafo Miru's mentor?") or two ("What is Zafo Miru's mentor's home?").
The held-out entities and their facts occur in the corpus and in the held-out questions, and nowhere else.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

from rljob_trainer.quickstart.demonstrations import Demonstrator
from rljob_trainer.quickstart.tokenizer import POSSESSIVE, QUESTION, write_tokenizer

RELATIONS = ("mentor", "home", "rival", "friend")
DATA_SOURCE = "madeup"


@dataclass(frozen=True, slots=True)
class Question:
    """A question, the entity and relations that it names, and its one answer."""

    text: str
    entity: str
    relations: tuple[str, ...]
    answer: str


@dataclass(frozen=True, slots=True)
class World:
    """Entities by split and all facts: entity → relation → entity of the same split."""

    syllables: tuple[str, ...]
    train: tuple[str, ...]
    held_out: tuple[str, ...]
    facts: Mapping[str, Mapping[str, str]]


def make_world(rng: Random, entities: int, held_out: int, syllables: int) -> World:
    """Draw names and facts. A name is two different syllables out of `syllables`."""
    letters = [c + v + d + w for c in "bdfgklmnprstvz" for v in "aeiou" for d in "bdfgklmnprstvz" for w in "aeiou"]
    chosen = tuple(word.capitalize() for word in rng.sample(letters, syllables))
    names = [f"{left} {right}" for left in chosen for right in chosen if left != right]
    rng.shuffle(names)
    names = names[:entities]
    train, rest = tuple(names[held_out:]), tuple(names[:held_out])
    facts: dict[str, dict[str, str]] = {}
    for split in (train, rest):
        for entity in split:
            facts[entity] = {relation: _other(rng, split, entity) for relation in RELATIONS}
    return World(chosen, train, rest, facts)


def _other(rng: Random, split: Sequence[str], entity: str) -> str:
    value = rng.choice(split)
    while value == entity:
        value = rng.choice(split)
    return value


def ask(rng: Random, world: World, split: Sequence[str], two_hop: float) -> Question:
    """A question over `split`; of two hops with probability `two_hop`. The answer is never the entity asked about."""
    while True:
        entity = rng.choice(split)
        relations = tuple(rng.choice(RELATIONS) for _ in range(2 if rng.random() < two_hop else 1))
        answer = entity
        for relation in relations:
            answer = world.facts[answer][relation]
        if answer != entity:
            asked = "".join(f"{POSSESSIVE} {relation}" for relation in relations)
            return Question(f"{QUESTION} {entity}{asked}?", entity, relations, answer)


def passages(rng: Random, world: World) -> list[dict[str, str]]:
    """The corpus in wiki-18's format, one passage per fact, shuffled so that ids say nothing of the relation."""
    facts = [(entity, relation, value) for entity in world.facts for relation, value in world.facts[entity].items()]
    rng.shuffle(facts)
    return [
        {"id": str(number), "contents": f'"{entity} {relation}"\n{value}'}
        for number, (entity, relation, value) in enumerate(facts)
    ]


def question_rows(questions: Sequence[Question], split: str) -> Iterable[dict[str, Any]]:
    """Rows as Search-R1's nq_search files have them."""
    for index, question in enumerate(questions):
        yield {
            "id": f"{split}_{index}",
            "question": question.text,
            "golden_answers": [question.answer],
            "data_source": f"{DATA_SOURCE}_{len(question.relations)}hop",
            "prompt": [{"role": "user", "content": question.text}],
            "ability": "fact-reasoning",
            "reward_model": {"style": "rule", "ground_truth": {"target": [question.answer]}},
            "extra_info": {"split": split, "index": index},
        }


def _unique(rng: Random, world: World, split: Sequence[str], two_hop: float, count: int) -> list[Question]:
    questions: dict[str, Question] = {}
    for _ in range(200 * count):
        if len(questions) == count:
            break
        question = ask(rng, world, split, two_hop)
        questions.setdefault(question.text, question)
    if len(questions) < count:
        raise ValueError(f"{len(split)} entities do not give {count} different questions; ask for fewer")
    return list(questions.values())


def _write_lines(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    with path.open("w", encoding="utf-8", newline="\n") as file:
        for row in rows:
            file.write(json.dumps(row, ensure_ascii=False, separators=(",", ":")) + "\n")


def prepare(
    directory: str | Path,
    *,
    seed: int = 0,
    folder: str = "world",
    entities: int = 4000,
    heldOutEntities: int = 1000,
    syllables: int = 120,
    trainQuestions: int = 6000,
    heldOutQuestions: int = 512,
    demonstrations: int = 30000,
    twoHop: float = 0.5,
    topk: int = 3,
    relationNamed: float = 0.4,
    turnsRight: float = 0.75,
    documentRight: float = 0.7,
) -> None:
    """Write the world into `directory/folder`; the same arguments give the same bytes. Named as in the manifest.

    Files: `corpus.jsonl`, `train.jsonl`, `held_out.jsonl`, `demonstrations.jsonl`, `tokenizer/`, `world.json`.
    The last three arguments say how often a demonstration names the relation in its query, takes as many turns as
    the question has hops, and follows the right document: all of them are imperfect, so that there is much to learn.
    """
    if not 2 <= heldOutEntities <= entities - 2 or entities > syllables * (syllables - 1):
        raise ValueError(
            f"{syllables} syllables give {syllables * (syllables - 1)} names: entities ({entities}) may not exceed it, "
            f"and each split needs 2 entities or more (heldOutEntities is {heldOutEntities})"
        )
    arguments = {key: value for key, value in locals().items() if key not in ("directory", "folder")}
    target = Path(directory) / folder
    target.mkdir(parents=True, exist_ok=True)
    # A stream per file: asking for more questions does not change the demonstrations.
    world = make_world(Random(f"{seed}/world"), entities, heldOutEntities, syllables)
    corpus = passages(Random(f"{seed}/corpus"), world)
    train = _unique(Random(f"{seed}/train"), world, world.train, twoHop, trainQuestions)
    held_out = _unique(Random(f"{seed}/held_out"), world, world.held_out, twoHop, heldOutQuestions)
    demonstrator = Demonstrator(corpus, topk, relationNamed, turnsRight, documentRight)
    rng = Random(f"{seed}/demonstrations")
    shown = (demonstrator.show(rng, ask(rng, world, world.train, twoHop)) for _ in range(demonstrations))
    _write_lines(target / "corpus.jsonl", corpus)
    _write_lines(target / "train.jsonl", question_rows(train, "train"))
    _write_lines(target / "held_out.jsonl", question_rows(held_out, "held_out"))
    _write_lines(target / "demonstrations.jsonl", ({"segments": segments} for segments in shown))
    vocabulary_size = write_tokenizer(target / "tokenizer", RELATIONS, world.syllables)
    summary = {
        "arguments": arguments,
        "relations": RELATIONS,
        "syllables": world.syllables,
        "vocabularySize": vocabulary_size,
        "passages": len(corpus),
        "entities": {"train": world.train, "heldOut": world.held_out},
    }
    (target / "world.json").write_text(json.dumps(summary, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
