"""What the recipes of `examples/` need to run shrunk: made-up rows in the schema of every source, a byte-level
tokenizer and a small corpus. The overlays under `examples/overlays/` name it in place of the download."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from random import Random
from typing import Any

from rljob_trainer.quickstart.byte_tokenizer import write_byte_tokenizer

Row = Mapping[str, Any]
PLACES = ("Zafo", "Miru", "Teldan", "Okvar", "Lusim", "Pernak", "Donfu", "Kiral")
SEARCH_SOURCES = {
    "nq": ("train", "test"),
    "triviaqa": ("test",),
    "popqa": ("test",),
    "hotpotqa": ("train", "dev"),
    "2wikimultihopqa": ("dev",),
    "musique": ("dev",),
    "bamboogle": ("test",),
}
"""Sources and splits as FlashRAG has them."""


def prepare(directory: str | Path, *, files: Mapping[str, str], rows: int = 24, seed: int = 0) -> None:
    """As `rljob_trainer.data.recipes:prepare_data` with `files` {file: recipe}, from made-up sources of `rows` rows
    each; `tiny/tokenizer` and `tiny/corpus.jsonl` beside them."""
    from rljob_trainer.data.recipes import prepare_data

    folder = Path(directory) / "tiny"
    for name, made in sources(rows, seed).items():
        _write(folder / "sources" / name, made)
    _write(folder / "corpus.jsonl", corpus())
    write_byte_tokenizer(folder / "tokenizer")
    prepare_data(directory, files=files, source="tiny/sources")


def sources(rows: int, seed: int) -> dict[str, list[Row]]:
    """File → rows, in the schemas that the recipes' sources have on the Hub."""
    made: dict[str, list[Row]] = {}
    for name, splits in SEARCH_SOURCES.items():
        for split in splits:
            draw = Random(f"{seed}/{name}/{split}")
            made[f"{name}/{split}.jsonl"] = [_question(draw, f"{split}_{number}") for number in range(rows)]
    made["openr1-math-220k.jsonl"] = [_openr1(number) for number in range(rows)]
    made["bespoke-stratos-17k.jsonl"] = [_stratos(number) for number in range(rows)]
    made["dapo-math-17k.jsonl"] = [_problem(number, 7) for number in range(rows)]
    made["aime-2024.jsonl"] = [_problem(number, 11) for number in range(max(2, rows // 8))]
    return made


def corpus() -> list[Row]:
    """Passages in wiki-18's format."""
    return [
        {"id": str(number), "contents": f'"{place}"\n{place} was founded by {PLACES[number - 1]} the Elder.'}
        for number, place in enumerate(PLACES)
    ]


def _question(draw: Random, name: str) -> Row:
    number = draw.randrange(len(PLACES))
    founder = PLACES[number - 1]
    return {
        "id": name,
        "question": f"who founded {PLACES[number]}",
        "golden_answers": [f"{founder} the Elder", founder],
    }


def _openr1(number: int) -> Row:
    problem, answer = f"What is {number} + {number}?", str(2 * number)
    reasoning = f"<think>\nTwice {number}.\n</think>\n<answer>\n\\boxed{{{answer}}}\n</answer>"
    return {
        "problem": problem,
        "solution": f"Add: {answer}",
        "answer": answer,
        "problem_type": "Algebra",
        "question_type": "math-word-problem",
        "source": "made_up",
        "uuid": f"u-{number}",
        "messages": [{"role": "user", "content": problem}, {"role": "assistant", "content": reasoning}],
    }


def _stratos(number: int) -> Row:
    thought = f"<|begin_of_thought|>\n\n{number} is {2 * (number // 2)} plus {number % 2}.\n\n<|end_of_thought|>"
    answer = "yes" if number % 2 == 0 else "no"
    return {
        "system": "Think within the marks, then answer within the marks.",
        "conversations": [
            {"from": "user", "value": f"Is {number} even?"},
            {
                "from": "assistant",
                "value": f"{thought}\n\n<|begin_of_solution|>\n\n\\boxed{{{answer}}}\n\n<|end_of_solution|>",
            },
        ],
    }


def _problem(number: int, factor: int) -> Row:
    text = f"Compute {number} times {factor}. End with a line 'Answer: ' and the number."
    return {"prompt": [{"role": "user", "content": text}], "label": str(factor * number)}


def _write(path: Path, rows: Iterable[Row]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
