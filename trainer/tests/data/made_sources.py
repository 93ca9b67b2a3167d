"""A few dozen rows in the schema of each source, all of them made up here."""

from pathlib import Path
from typing import Any

import orjson

CITIES = ["Zafo", "Miru", "Teldan", "Okvar", "Lusim", "Pernak"]


def flashrag(name: str, split: str, count: int = 6) -> list[dict[str, Any]]:
    return [
        {
            "id": f"{split}_{number}",
            "question": f"who founded {city} according to {name}" + ("?" if number % 2 else " "),
            "golden_answers": [f"{city} the Elder", city],
            "metadata": {"type": "bridge"},
        }
        for number, city in zip(range(count), CITIES * 9, strict=False)
    ]


def openr1(count: int = 8) -> list[dict[str, Any]]:
    rows = []
    for number in range(count):
        problem, answer = f"What is {number} + {number}?", str(2 * number)
        reasoning = f"<think>\nTwice {number}.\n</think>\n\nIt is \\boxed{{{answer}}}."
        rows.append(
            {
                "problem": problem,
                "solution": f"Add: {answer}",
                "answer": answer if number != 3 else "",
                "problem_type": "Algebra",
                "question_type": "proof" if number == 5 else "math-word-problem",
                "source": "made_up",
                "uuid": f"u-{number}",
                "is_reasoning_complete": [True, False],
                "generations": [reasoning, "…"],
                "correctness_math_verify": [True, False],
                "correctness_llama": None,
                "finish_reasons": ["stop", "length"],
                "correctness_count": 1,
                "messages": [
                    {"role": "user", "content": problem},
                    {"role": "assistant", "content": reasoning if number != 4 else ""},
                ],
            }
        )
    return rows


def stratos(count: int = 5) -> list[dict[str, Any]]:
    return [
        {
            "system": "Think in the marked section, then answer in the marked section.",
            "conversations": [
                {"from": "user", "value": f"Is {number} even?"},
                {"from": "assistant", "value": f"<|begin_of_thought|>{number} % 2<|end_of_thought|> See above."},
            ],
        }
        for number in range(count)
    ]


def math(count: int = 7) -> list[dict[str, Any]]:
    return [
        {
            "prompt": [{"role": "user", "content": f"Compute {number}·7.\nEnd with Answer: $n$."}],
            "label": str(7 * number),
        }
        for number in range(count)
    ]


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".parquet":
        import pyarrow
        from pyarrow import parquet

        parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    else:
        path.write_bytes(b"".join(orjson.dumps(row) + b"\n" for row in rows))
    return path


def search_r1(folder: Path) -> Path:
    """The seven sets, as far as evaluation and training read them; each with the splits that the real one has."""
    for name in ("nq", "triviaqa", "popqa"):
        write(folder / name / "test.jsonl", flashrag(name, "test", 4))
    for name in ("hotpotqa", "2wikimultihopqa", "musique"):
        write(folder / name / "dev.jsonl", flashrag(name, "dev", 4))
    write(folder / "bamboogle" / "test.jsonl", flashrag("bamboogle", "test", 4))
    for name in ("nq", "hotpotqa"):
        write(folder / name / "train.jsonl", flashrag(name, "train"))
    return folder
