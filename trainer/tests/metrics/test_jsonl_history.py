"""What is written line by line is read back, torn lines and lost steps included."""

import json
from pathlib import Path

import pytest
from rljob_trainer.metrics.jsonl import JsonlWriter, read_history, read_jsonl


def test_a_torn_last_line_is_left_out(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    with JsonlWriter(path) as writer:
        writer.write({"step": 1})
        writer.write({"step": 2, "loss": float("inf")})
    with path.open("a") as file:
        file.write('{"step": 3, "lo')
    assert list(read_jsonl(path)) == [{"step": 1}, {"step": 2, "loss": None}]


def test_a_broken_line_in_the_middle_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"st\n{"step": 3}\n')
    with pytest.raises(ValueError, match="line 2"):
        list(read_jsonl(path))


def test_a_step_that_was_trained_twice_counts_once_as_trained_last(tmp_path: Path) -> None:
    for incarnation, values in (("0001-aa", {1: 0.1, 2: 0.2, 3: 0.3}), ("0002-bb", {3: 0.33, 4: 0.4})):
        folder = tmp_path / "attempts" / incarnation
        folder.mkdir(parents=True)
        lines = [json.dumps({"kind": "rl", "step": step, "reward": reward}) for step, reward in values.items()]
        (folder / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    history = read_history(tmp_path)
    assert [(record["step"], record["reward"]) for record in history] == [(1, 0.1), (2, 0.2), (3, 0.33), (4, 0.4)]
