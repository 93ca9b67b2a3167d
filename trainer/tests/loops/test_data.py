"""What a run reads first: a user's mistake is told before what takes long."""

import copy
from pathlib import Path
from typing import Any

import pytest
from rljob_trainer.config.errors import UserError
from rljob_trainer.config.job import RLJob
from rljob_trainer.data.sft import CACHE
from rljob_trainer.loops.run import Data

from .conftest import MANIFEST


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
def test_a_missing_file_is_told_before_demonstrations_are_tokenised(
    mistake: Any, told: str, tiny_world: Path, tmp_path: Path
) -> None:
    (tmp_path / "world").symlink_to(tiny_world)
    manifest = copy.deepcopy(MANIFEST)
    mistake(manifest["spec"])
    with pytest.raises(UserError, match=told):
        Data(RLJob.model_validate(manifest), tmp_path)
    assert not (tmp_path / CACHE).exists()


def test_demonstrations_are_read_when_all_is_there(tiny_world: Path, tmp_path: Path) -> None:
    (tmp_path / "world").symlink_to(tiny_world)
    data = Data(RLJob.model_validate(MANIFEST), tmp_path)
    assert data.sft is not None
    assert len(data.sft) > 0
    assert (tmp_path / CACHE).is_dir()
