"""A run that is killed at any moment and resumed ends with the same weights, bit for bit."""

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable

import psutil
import pytest
from rljob_trainer.checkpoint import latest_commit

from .conftest import TinyRun, end_session

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(1800)]

Moment = Callable[[TinyRun], bool]
MOMENTS: dict[str, Moment] = {
    "in SFT, after a commit": lambda run: len(run.records("sft")) >= 3,
    "in the first rollout": lambda run: len(run.records("evaluation")) >= 1,
    "in a later rollout": lambda run: len(run.records("rl")) >= 2,
    "while a commit is written": lambda run: len(run.records("rl")) >= 1 and run.writing_commit(),
}


def test_an_undisturbed_run_trains_all_steps_and_says_so(undisturbed: TinyRun) -> None:
    summary, progress = undisturbed.summary(), undisturbed.progress()
    assert (summary["steps"], summary["total_steps"], summary["state"]) == (9, 9, "Succeeded")
    assert (progress["step"], progress["totalSteps"], progress["state"], progress["exitCode"]) == (9, 9, "Succeeded", 0)
    assert progress["stage"] == "Done"
    assert progress["lastCommit"]["step"] == 9
    assert set(progress["evaluation"]) == {"held-out/after_sft", "held-out/rollout_2", "held-out/final"}
    assert [record["step"] for record in undisturbed.records("sft")] == [1, 2, 3, 4, 5]
    rl = undisturbed.records("rl")
    assert [record["policy_version"] for record in rl] == [1, 2, 3, 4]
    for record in rl:
        phases = sum(
            record[f"seconds/{name}"] for name in ("generate", "reward", "train", "sync", "commit", "evaluate")
        )
        assert phases + record["seconds/idle"] == pytest.approx(record["seconds/total"])
    # The engine and the trainer agree on what they compute.
    assert all(record["logprob_diff_max"] < 1e-4 for record in rl)
    assert all(record["kl"] >= 0.0 and record["entropy"] > 0.0 for record in rl)
    page = (undisturbed.directory / "report.html").read_text()
    assert page.startswith("<!doctype html>")
    assert "http" not in page.split("</style>")[0]
    assert (undisturbed.directory / "attempts/0001-00000001/model/model.safetensors").is_file()


def test_completions_mark_what_is_trained_on(undisturbed: TinyRun) -> None:
    path = undisturbed.directory / "attempts/0001-00000001/completions.jsonl"
    records = [json.loads(line) for line in path.read_text().splitlines()]
    train = [record for record in records if record["name"] == "train"]
    assert len(train) == 4 * 2
    for record in train:
        assert len(record["loss_mask"]) == len(record["response_ids"])
        assert record["policy_versions"] == [record["rollout"] - 1]


@pytest.mark.parametrize("moment", MOMENTS, ids=str)
def test_killed_and_resumed_ends_with_the_same_weights(moment: str, tiny: TinyRun, undisturbed: TinyRun) -> None:
    killed = tiny.run_until(MOMENTS[moment], signal.SIGKILL)
    assert killed.code == -signal.SIGKILL
    before = tiny.last_step()
    ended = tiny.run()
    assert ended.code == 0, ended.stderr
    assert tiny.summary()["weights_digest"] == undisturbed.summary()["weights_digest"]
    assert tiny.summary()["steps"] == 9
    assert tiny.summary()["evaluations"] == undisturbed.summary()["evaluations"]
    # It went on from the last commit, and did not start anew.
    trained = [record["step"] for record in [*tiny.records("sft"), *tiny.records("rl")]]
    assert trained == list(range(max(before, 0) + 1, 10))


def test_terminated_commits_and_resumes(tiny: TinyRun, undisturbed: TinyRun) -> None:
    ended = tiny.run_until(lambda run: len(run.records("rl")) >= 1, signal.SIGTERM)
    assert ended.code == 4
    assert tiny.progress()["state"] == "Suspended"
    commit = latest_commit(tiny.directory).commit
    assert commit is not None
    assert tiny.progress()["lastCommit"] == {
        "name": commit.name,
        "step": commit.step,
        "policyVersion": commit.step - 5,
        "time": tiny.progress()["lastCommit"]["time"],
    }
    assert tiny.run().code == 0
    assert tiny.summary()["weights_digest"] == undisturbed.summary()["weights_digest"]


def test_a_lost_rank_is_named_and_the_next_attempt_goes_on(tiny: TinyRun, undisturbed: TinyRun) -> None:
    process = tiny.start()
    stderr = _kill_worker(tiny, process, "TrainerRank", lambda run: len(run.records("rl")) >= 1)
    assert process.returncode == 1
    assert "rank 0 died" in stderr
    assert "Traceback" not in stderr
    assert tiny.progress()["state"] == "Failed"
    assert "rank 0 died" in tiny.progress()["message"]
    assert tiny.run().code == 0
    assert tiny.summary()["weights_digest"] == undisturbed.summary()["weights_digest"]


def test_a_lost_engine_is_replaced_and_changes_nothing(tiny: TinyRun, undisturbed: TinyRun) -> None:
    process = tiny.start()
    stderr = _kill_worker(tiny, process, "RolloutWorker", lambda run: len(run.records("rl")) >= 1)
    assert process.returncode == 0, stderr
    assert "engine 0 died" in stderr
    assert tiny.summary()["weights_digest"] == undisturbed.summary()["weights_digest"]


def _kill_worker(run: TinyRun, process: "subprocess.Popen[str]", title: str, moment: Moment) -> str:
    """Kill the actor of class `title` at the moment. Returns what the driver wrote to standard error."""
    try:
        deadline = time.monotonic() + 600
        while not moment(run):
            assert process.poll() is None, process.communicate()[1]
            assert time.monotonic() < deadline
            time.sleep(0.002)
        children = psutil.Process(process.pid).children(recursive=True)
        found = [child for child in children if title in "".join(child.cmdline())]
        assert len(found) == 1
        os.kill(found[0].pid, signal.SIGKILL)
        stderr: str = process.communicate(timeout=600)[1]
    finally:
        end_session(process)
    return stderr
