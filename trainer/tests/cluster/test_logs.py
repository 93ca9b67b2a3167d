"""Lines of the log: for machines on a cluster, for people elsewhere."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = """
import logging, sys
from rljob_trainer import logs
logs.configure("rank", 3)
logs.at_step(12)
logging.getLogger("rljob_trainer.x").warning("two\\nlines of %s", "text")
try:
    raise ValueError("broken")
except ValueError:
    logging.getLogger("rljob_trainer.x").exception("failed")
print("printed")
print("half", end="", file=logs.LineLogger(logging.getLogger("p")))
print(" a line", "and another", sep="\\n", file=logs.LineLogger(logging.getLogger("p")))
"""


def run(**environment: str) -> subprocess.CompletedProcess[str]:
    env = {key: value for key, value in os.environ.items() if not key.startswith("RLJOB_")} | environment
    return subprocess.run(
        [sys.executable, "-c", SCRIPT], env=env, capture_output=True, text=True, timeout=60, check=True
    )


def test_on_a_cluster_a_line_says_where_it_comes_from(tmp_path: Path) -> None:
    log = tmp_path / "pod.log"
    done = run(RLJOB_NAME="demo", RLJOB_ATTEMPT="2", RLJOB_POD_LOG=str(log))
    *lines, printed = log.read_text().splitlines()
    first, failed, *progress = [json.loads(line) for line in [*lines, printed] if line != "printed"]
    assert first.pop("time").endswith("+00:00")
    assert first == {
        "level": "warning", "job": "demo", "attempt": 2, "role": "rank", "index": 3, "step": 12,
        "logger": "rljob_trainer.x", "message": "two\nlines of text",
    }  # fmt: skip
    assert "ValueError: broken" in failed["exception"]
    assert [line["message"] for line in progress] == [" a line", "and another"]
    assert "printed" in log.read_text().splitlines()
    assert "printed" in done.stdout


def test_at_home_it_is_plain() -> None:
    lines = run().stderr.splitlines()
    assert lines[0].endswith("WARNING rljob_trainer.x: two")
    with pytest.raises(json.JSONDecodeError):
        json.loads(lines[0])
