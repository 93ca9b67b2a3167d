"""What was recorded of earlier versions (see `record.py`), for the tests."""

import json
import shlex
from pathlib import Path
from typing import Any

import pytest

from tests.compat import record

CORPORA = sorted(path for path in record.CORPUS.iterdir() if path.is_dir())
JOBS = [path for corpus in CORPORA for path in sorted((corpus / "jobs").glob("*.json"))]
REPORTS = [path for corpus in CORPORA for path in sorted((corpus / "progress").glob("*.json"))]
MODULE = {"rljob_trainer.retriever": "retriever.__main__"}


def name_of(path: Path) -> str:
    """For the test's name."""
    return str(path.relative_to(record.CORPUS)).removesuffix(".json")


def load(path: Path) -> Any:
    """A recorded file."""
    return json.loads(path.read_text(encoding="utf-8"))


each_corpus = pytest.mark.parametrize("corpus", CORPORA, ids=name_of)
each_job = pytest.mark.parametrize("path", JOBS, ids=name_of)
each_report = pytest.mark.parametrize("path", REPORTS, ids=name_of)


def corpus_of(path: Path) -> Path:
    """The corpus that a recorded file is of."""
    return record.CORPUS / path.relative_to(record.CORPUS).parts[0]


def commands(job: dict[str, Any]) -> list[list[str]]:
    """Every command line of a job's pods."""
    lines = [shlex.split(job["entrypoint"])]
    for container in job["containers"].values():
        lines += [line for line in (container["command"], container["preStop"]) if line]
    return [line for line in lines if line[:2] == ["python", "-m"]]


def entry_point(line: list[str]) -> str:
    """The module that a command line runs, beneath `rljob_trainer`."""
    return MODULE.get(line[2], line[2].removeprefix("rljob_trainer."))
