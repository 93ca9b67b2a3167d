"""Whole runs whose reward function fails: on every sample it ends the job, on some it is counted wherever one looks."""

import copy
import os
import socket
from pathlib import Path
from typing import Any

import pytest
from rljob_api.errors import UserError
from rljob_trainer.orchestrator.stop import StopFlag
from rljob_trainer.report.summary import terminal_lines
from rljob_trainer.rewards import RewardAwayError

from .conftest import MANIFEST, TinyRun
from .in_process import InProcess, Killed

REWARDS = """import os
import time

def raises(sample):
    raise ValueError("no digit in it")

def exits(sample):
    raise SystemExit(1)

def dies(sample):
    os._exit(1)

def hangs(sample):
    time.sleep(1000)

def nothing(sample):
    return None

def text(sample):
    return "good"

def nan(sample):
    return float("nan")

def moody(sample):
    if sample.index == 1:
        raise KeyError("x")
    return float(len(sample.response_ids))
"""


@pytest.fixture
def run(tiny_world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> InProcess:
    """The tiny job without SFT and evaluations."""
    made = in_process(tmp_path / "job", tiny_world, monkeypatch)
    hooks = tmp_path / "hooks"
    hooks.mkdir()
    (hooks / "failing.py").write_text(REWARDS)
    monkeypatch.syspath_prepend(str(hooks))
    return made


def in_process(directory: Path, world: Path, monkeypatch: pytest.MonkeyPatch) -> InProcess:
    directory.mkdir()
    (directory / "world").symlink_to(world)
    made = InProcess(directory, copy.deepcopy(MANIFEST), monkeypatch)
    spec: dict[str, Any] = made.manifest["spec"]
    del spec["sft"], spec["evaluation"]
    spec["checkpoint"]["saveHf"] = False
    return made


def custom(run: InProcess | TinyRun, name: str, **more: Any) -> dict[str, Any]:
    spec: dict[str, Any] = run.manifest["spec"]
    spec["reward"] = {"functions": [{"name": "custom", "function": f"failing:{name}"}], **more}
    return spec


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("raises", r"ValueError: no digit in it \(failing\.py:5\)"),
        ("exits", r"SystemExit: 1 \(failing\.py:8\)"),
        ("dies", r"the reward process was lost: exit code 1 \(failing\.py:10\)"),
        ("hangs", r"ran out of time \(failing\.py:13\)"),
        ("nothing", r"TypeError: a reward must be .*, not None \(failing\.py:16\)"),
        ("text", r"TypeError: a reward must be .*, not 'good' \(failing\.py:19\)"),
        ("nan", r"returned nan, not finite numbers \(failing\.py:22\)"),
    ],
)
def test_a_function_that_fails_on_every_sample_ends_the_job(run: InProcess, name: str, message: str) -> None:
    spec = custom(run, name, timeoutSeconds=0.5 if name == "hangs" else 30, workers=2)
    spec["rollout"] |= {"batchSize": 1}
    with pytest.raises(UserError, match=message) as ended:
        run.run()
    assert "spec.reward.functions[0] (custom, failing:" in str(ended.value)
    assert "each of the 4 samples of rollout 0" in str(ended.value)
    assert run.last_step() == -1  # nothing was trained on it
    told = run.progress.snapshot()["rewardFailures"]
    assert told["message"].startswith("4 of 4 samples of rollout 0 have no reward: 4 × ")


@pytest.mark.slow
def test_a_filter_is_not_blamed(run: InProcess) -> None:
    """All rewards are alike then, and so every group would be dropped until the limit of prompts."""
    custom(run, "raises")["rollout"] |= {"dynamicFilter": "nonzero_std"}
    with pytest.raises(UserError, match=r"each of the 12 samples of rollout 0: ValueError"):
        run.run()
    assert run.calls == 1


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["Train", "Evaluate"])
def test_an_evaluation_does_not_make_a_score_of_it(run: InProcess, mode: str) -> None:
    spec = custom(run, "raises")
    spec["evaluation"] = copy.deepcopy(MANIFEST["spec"]["evaluation"])
    if mode == "Evaluate":
        spec["mode"] = mode
        del spec["data"], spec["algorithm"], spec["optimizer"]
    with pytest.raises(UserError, match=r"each of the 6 samples of evaluation held-out/(start|final): ValueError"):
        run.run()
    assert run.records("evaluation") == []


@pytest.mark.slow
def test_generated_samples_need_rewards_too(run: InProcess) -> None:
    spec = custom(run, "raises")
    spec |= {"mode": "Generate"}
    spec["rollout"] |= {"batchSize": 500, "nSamplesPerPrompt": 2}  # more than there are prompts
    del spec["rollout"]["numRollout"]
    with pytest.raises(UserError, match=r"each of the 80 samples of rollout 0"):
        run.run()


@pytest.mark.slow
def test_a_reward_model_that_is_away_fails_the_attempt_and_the_next_goes_on(run: InProcess) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}/score"
    run.manifest["spec"]["reward"] = {"functions": [{"name": "remote", "url": url, "args": {"retries": 0}}]}
    with pytest.raises(RewardAwayError, match=r"\(remote, http://.*\) gives no reward for each of the 12 samples"):
        run.run()
    assert not isinstance(RewardAwayError("x"), UserError)


@pytest.mark.slow
def test_failures_of_single_samples_are_counted_once_however_often_the_run_dies(
    run: InProcess, tiny_world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    custom(run, "moody")
    run.run()
    whole = run.summary()
    # A KeyError for one of the four samples of each of three prompts, four times.
    assert whole["reward_failures"] == {"samples": 12, "errors": {"KeyError at failing.py:27": 12}}
    assert "samples without a reward             12 (12 × KeyError at failing.py:27)" in "\n".join(
        terminal_lines(whole)
    )
    assert [record["reward_failures"] for record in run.records("rl")] == [3.0] * 4
    assert run.records("rl")[0]["reward_errors"] == {"KeyError at failing.py:27": 3}
    told = run.progress.snapshot()["rewardFailures"]
    assert told == {
        "message": "3 of 12 samples of rollout 3 have no reward: 3 × KeyError at failing.py:27; "
        "12 of 48 in this attempt",
        "failures": 12,
        "samples": 48,
    }
    assert "KeyError at failing.py:27" in (run.directory / "report.html").read_text()

    again = in_process(tmp_path / "again", tiny_world, monkeypatch)
    custom(again, "moody")
    again.manifest["spec"]["checkpoint"]["saveInterval"] = 2

    def kill(number: int, stop: StopFlag) -> None:
        if number == 4:
            raise Killed

    with pytest.raises(Killed):
        again.run(kill)
    again.run()
    assert again.summary()["reward_failures"] == whole["reward_failures"]
    assert again.summary()["weights_digest"] == whole["weights_digest"]
    assert again.progress.snapshot()["rewardFailures"]["failures"] < 12  # of the attempt


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.timeout(900)
@pytest.mark.parametrize("dynamic", [False, True])
def test_the_driver_ends_with_the_users_mistake(tiny: TinyRun, tmp_path: Path, dynamic: bool) -> None:
    hooks = tmp_path / "hooks"
    hooks.mkdir()
    (hooks / "failing.py").write_text(REWARDS)
    spec = custom(tiny, "raises")
    del spec["sft"], spec["evaluation"]
    spec["placement"] = {"type": "async"}
    if dynamic:
        spec["rollout"]["dynamicFilter"] = "nonzero_std"
    path = os.pathsep.join([str(hooks), os.environ.get("PYTHONPATH", "")])
    ended = tiny.run(env={"PYTHONPATH": path})
    assert ended.code == 2, ended.stderr
    assert "ValueError: no digit in it (failing.py:5)" in ended.stderr
    progress = tiny.progress()
    assert (progress["reason"], progress["exitCode"], progress["state"]) == ("UserError", 2, "Failed")
    assert "ValueError at failing.py:5" in progress["rewardFailures"]["message"]
