"""Commits of whole runs, in this process: in the background, at the ends of epochs, full disks, warm starts."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from rljob_trainer.checkpoint import CommitError, list_commits
from rljob_trainer.training import rank_state

from .conftest import MANIFEST
from .in_process import InProcess, Killed

pytestmark = [pytest.mark.slow]


@pytest.fixture
def make(tiny_world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    # The rank's switch is the whole process's; the engine, which has its own way to be exact, would stumble over it.
    monkeypatch.setattr(torch, "use_deterministic_algorithms", lambda *args, **options: None)

    def run_in(name: str, **checkpoint: Any) -> InProcess:
        directory = tmp_path / name
        directory.mkdir(exist_ok=True)
        (directory / "world").symlink_to(tiny_world)
        manifest = copy.deepcopy(MANIFEST)
        manifest["metadata"]["name"] = name
        manifest["spec"]["checkpoint"] |= {"saveHf": False, **checkpoint}
        return InProcess(directory, manifest, monkeypatch)

    return run_in


def kill_at(number: int) -> Any:
    def at_generate(now: int, stop: Any) -> None:
        if now == number:
            raise Killed

    return at_generate


def test_commits_in_the_background_change_nothing(make: Any) -> None:
    plain = make("plain")
    plain.run()
    expected = plain.summary()["weights_digest"]
    background = make("background", asynchronous=True)
    with pytest.raises(Killed):
        background.run(kill_at(4))
    assert background.last_step() >= 6  # SFT's five steps, and what was under way when the driver ended
    background.run()
    assert background.summary()["weights_digest"] == expected
    assert not list(background.directory.glob("attempts/*/commits/.tmp-*"))


def test_a_disk_that_is_full_fails_the_attempt_and_the_next_goes_on(make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    run = make("full", asynchronous=True)
    write, calls = rank_state.write_shard, []

    def full(*args: Any) -> Any:
        calls.append(args)
        if len(calls) == 4:
            raise OSError(28, "No space left on device")
        return write(*args)

    with monkeypatch.context() as patch:
        patch.setattr(rank_state, "write_shard", full)
        with pytest.raises(CommitError, match=r"was not written: rank 0: OSError: .*No space left on device"):
            run.run()
    before = run.last_step()
    assert before >= 4
    run.run()
    assert run.summary()["steps"] == 9
    assert min(record["step"] for record in run.records("rl")) <= before + 1


def test_a_commit_at_the_end_of_each_epoch(make: Any) -> None:
    run = make("epochs", saveInterval=0, sftSaveInterval=0, saveAtEpochEnd=True, keep=20)
    run.manifest["spec"]["sft"]["numSteps"] = 7  # 40 rows, 8 a step: epochs end with steps 5 and 10
    run.manifest["spec"]["rollout"] |= {"batchSize": 20, "nSamplesPerPrompt": 2}  # 40 prompts: with rollouts 2 and 4
    run.run()
    assert [commit.step for commit in list_commits(run.directory)] == [5, 7, 9, 11]


def test_a_job_starts_from_another_ones_commit(make: Any) -> None:
    first = make("first")
    first.run()
    second = make("second", warmStart={"job": "first"})
    second.manifest["spec"]["sft"] = None
    second.run()
    assert second.summary()["steps"] == 4
    alone = make("alone")
    alone.manifest["spec"]["sft"] = None
    alone.run()
    assert second.summary()["weights_digest"] != alone.summary()["weights_digest"]
    start = {"first": first.summary()["weights_digest"]}
    assert second.summary()["weights_digest"] not in start.values()
