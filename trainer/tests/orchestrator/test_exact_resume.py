"""A run that is killed at any moment and resumed ends with the same weights, bit for bit."""

import json
import os
import signal
import time
from collections.abc import Callable

import pytest
from rljob_trainer.checkpoint import latest_commit
from rljob_trainer.watch.pulse import read

from .conftest import Driver, TinyRun, end_session

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(1800)]

Moment = Callable[[TinyRun], bool]
MOMENTS: dict[str, Moment] = {
    "in SFT, after a commit": lambda run: len(run.records("sft")) >= 3,
    "in the first rollout": lambda run: len(run.records("evaluation")) >= 1,
    "in a later rollout": lambda run: len(run.records("rl")) >= 2,
    "while a commit is written": lambda run: run.writing_commit(),
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


def learnt(run: TinyRun) -> dict[int, dict[str, float]]:
    """What each step of the current attempt computed."""
    names = ("loss", "reward", "kl", "entropy", "grad_norm")
    records = [*run.records("sft"), *run.records("rl")]
    return {record["step"]: {name: record[name] for name in names if name in record} for record in records}


def test_killed_and_resumed_ends_with_the_same_weights(tiny: TinyRun, undisturbed: TinyRun) -> None:
    """One attempt after the other is killed, each at a later moment of the job."""
    expected = learnt(undisturbed)
    before = 0
    for moment, come in [*MOMENTS.items(), ("at its end", None)]:
        if come is None:
            ended = tiny.run()
            assert ended.code == 0, ended.stderr
        else:
            assert tiny.run_until(come, signal.SIGKILL).code == -signal.SIGKILL, moment
        # It went on from the last commit, did not start anew, and computed what would have been computed without a
        # kill.
        trained = learnt(tiny)
        assert list(trained) == list(range(before + 1, before + 1 + len(trained))), moment
        assert trained == {step: expected[step] for step in trained}, moment
        before = max(tiny.last_step(), 0)
    assert tiny.summary()["weights_digest"] == undisturbed.summary()["weights_digest"]
    assert tiny.summary()["steps"] == 9
    assert tiny.summary()["evaluations"] == undisturbed.summary()["evaluations"]


def test_losses_and_a_termination_change_nothing(tiny: TinyRun, undisturbed: TinyRun) -> None:
    """An engine is lost and replaced; then SIGTERM: the attempt commits. A rank of the next is lost: that fails and
    is named. The third goes on to the same weights."""
    process = tiny.start()
    try:
        kill_worker(tiny, process, "engine 0", lambda run: len(run.records("evaluation")) >= 1)
        until(tiny, process, lambda run: len(run.records("rl")) >= 1)
        process.send_signal(signal.SIGTERM)
        stderr = process.communicate(timeout=600)[1]
    finally:
        end_session(process)
    assert "engine 0 died" in stderr
    assert process.returncode == 4, stderr
    assert tiny.progress()["state"] == "Suspended"
    commit = latest_commit(tiny.directory).commit
    assert commit is not None
    assert commit.step >= 6
    assert tiny.progress()["lastCommit"] == {
        "name": commit.name,
        "step": commit.step,
        "policyVersion": commit.step - 5,
        "time": tiny.progress()["lastCommit"]["time"],
    }

    process = tiny.start()
    try:
        kill_worker(tiny, process, "rank 0", lambda run: len(run.records("rl")) >= 1)
        stderr = process.communicate(timeout=600)[1]
    finally:
        end_session(process)
    assert process.returncode == 1
    assert "rank 0 died" in stderr
    assert "Traceback" not in stderr
    assert tiny.progress()["state"] == "Failed"
    assert "rank 0 died" in tiny.progress()["message"]

    assert tiny.run().code == 0
    assert tiny.summary()["weights_digest"] == undisturbed.summary()["weights_digest"]


def until(run: TinyRun, process: Driver, moment: Moment) -> None:
    deadline = time.monotonic() + 600
    while not moment(run):
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.002)


def kill_worker(run: TinyRun, process: Driver, who: str, moment: Moment) -> None:
    """Kill the process of a rank or an engine at the moment."""
    until(run, process, moment)
    (pulses,) = run.directory.glob(f"attempts/{run.attempts:04d}-*/pulse")
    os.kill(read(pulses)[who].pid, signal.SIGKILL)
