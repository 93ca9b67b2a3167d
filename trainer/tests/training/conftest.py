"""Fixtures: a job directory, and single ranks."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from rljob_trainer.training.rank import TrainerRank

from trainer.tests.training.tiny import job, write_tokenizer


@pytest.fixture
def job_dir(tmp_path: Path) -> Path:
    """A job directory with the tokenizer in it."""
    write_tokenizer(tmp_path)
    return tmp_path


@pytest.fixture
def make_rank(job_dir: Path) -> Iterator[Callable[..., Any]]:
    """A single rank, set up and loaded: `make_rank(changes to spec…)`."""

    def make(spec: dict[str, Any] | None = None, commit: str | None = None, **trainer: Any) -> TrainerRank:
        manifest = job(**trainer)
        for key, value in (spec or {}).items():
            manifest["spec"][key] = {**manifest["spec"].get(key, {}), **value} if isinstance(value, dict) else value
        rank = TrainerRank(manifest, str(job_dir), 0, 1)
        rank.setup("127.0.0.1", 0)
        rank.load(commit)
        return rank

    yield make
    torch.use_deterministic_algorithms(False)
