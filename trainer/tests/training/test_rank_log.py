"""What a rank writes into its pod's log while all is well."""

import json
import logging
import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rljob_trainer.training.rank import TrainerRank

from trainer.tests.training.tiny import job
from trainer.tests.warm import WarmProcess

Make = Callable[..., Any]


def load(arguments: list[str]) -> None:
    """The process of a rank: `load MANIFEST JOB_DIR`."""
    rank = TrainerRank(json.loads(arguments[0]), arguments[1], 0, 1)
    rank.setup("127.0.0.1", 0)
    rank.load(None)


@pytest.mark.slow
def test_the_pods_log_says_that_a_rank_has_loaded(job_dir: Path, tmp_path: Path) -> None:
    manifest = job()
    manifest["spec"]["tracking"] = {"metricsPort": 0}
    log = tmp_path / "pod.log"
    cluster = {"RLJOB_NAME": "demo", "RLJOB_ATTEMPT": "2", "RLJOB_POD_LOG": str(log), "HF_TOKEN": "hf_secret"}
    process = WarmProcess(
        load, [json.dumps(manifest), str(job_dir)], env=os.environ | cluster, output=tmp_path / "rank"
    )
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    (line,) = [line for text in log.read_text().splitlines() if "loaded" in (line := json.loads(text))["message"]]
    assert (line["level"], line["job"], line["attempt"], line["role"], line["index"]) == ("info", "demo", 2, "rank", 0)
    assert line["message"].startswith("rank 0 of 1 has loaded the weights that the job starts from in ")
    assert line["message"].endswith(f" s: backend fsdp, stage sft, on the CPU of {socket.gethostname()}")
    assert "hf_secret" not in log.read_text()


def test_the_line_says_which_commit_was_taken_up(
    make_rank: Make, job_dir: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "rljob_trainer.training.rank")
    rank = make_rank()
    rank.begin_rl()
    (job_dir / "commit").mkdir()
    rank.save(str(job_dir / "commit"))
    make_rank(commit=str(job_dir / "commit"))
    first, second = (record.getMessage() for record in caplog.records if " has loaded " in record.getMessage())
    assert "has loaded the weights that the job starts from in" in first
    assert "stage sft" in first
    assert f"has loaded the commit {job_dir}/commit in" in second
    assert "stage rl" in second


def test_without_demonstrations_the_stage_is_rl_from_the_start(
    make_rank: Make, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "rljob_trainer.training.rank")
    make_rank({"sft": None})
    assert "stage rl" in caplog.text
