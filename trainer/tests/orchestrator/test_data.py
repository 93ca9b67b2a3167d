"""What a run reads first: a user's mistake is told before what takes long."""

from typing import Any

import pytest
from rljob_api.errors import UserError
from rljob_trainer.data.sft import CACHE
from rljob_trainer.orchestrator.context import JobData

from .conftest import TinyRun


def wrong_train(spec: dict[str, Any]) -> None:
    spec["data"]["train"]["path"] = "/nowhere/train.jsonl"


def wrong_evaluation(spec: dict[str, Any]) -> None:
    spec["evaluation"] = {"datasets": [{"name": "held-out", "path": "/nowhere/held_out.jsonl"}]}


@pytest.mark.parametrize(
    ("mistake", "told"),
    [
        (wrong_train, r"^spec\.data\.train\.path: /nowhere/train\.jsonl does not exist$"),
        (wrong_evaluation, r"^spec\.evaluation\.datasets\[0\]\.path: /nowhere/held_out\.jsonl does not exist$"),
    ],
)
def test_a_missing_file_is_told_before_demonstrations_are_tokenised(mistake: Any, told: str, tiny: TinyRun) -> None:
    mistake(tiny.manifest["spec"])
    with pytest.raises(UserError, match=told):
        JobData(tiny.job(), tiny.directory)
    assert not (tiny.directory / CACHE).exists()


def test_demonstrations_are_read_when_all_is_there(tiny: TinyRun) -> None:
    data = JobData(tiny.job(), tiny.directory)
    assert data.sft is not None
    assert len(data.sft) > 0
    assert (tiny.directory / CACHE).is_dir()
