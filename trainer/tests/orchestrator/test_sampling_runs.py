"""Whole runs: dynamic sampling with partial rollouts is exactly resumed; jobs that only generate or evaluate."""

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rljob_api.v1alpha1.data import SftDataset
from rljob_api.v1alpha1.job import RLJob
from rljob_trainer.data.sft import SftSource
from rljob_trainer.models import load_tokenizer
from rljob_trainer.orchestrator.stop import Stop, StopFlag

from .conftest import MANIFEST
from .in_process import InProcess, Killed

pytestmark = [pytest.mark.slow]
Make = Callable[[], InProcess]


@pytest.fixture
def make(tiny_world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Make:
    """Makes runs of the tiny job, each in a directory of its own."""
    numbers = iter(range(10))

    def run() -> InProcess:
        directory = tmp_path / f"job-{next(numbers)}"
        directory.mkdir()
        (directory / "world").symlink_to(tiny_world)
        return InProcess(directory, copy.deepcopy(MANIFEST), monkeypatch)

    return run


def dynamic(run: InProcess) -> InProcess:
    """Over-sampling, DAPO's filter and partial rollouts, with answers of different lengths."""
    spec: dict[str, Any] = run.manifest["spec"]
    spec["sft"]["numSteps"] = 2
    del spec["evaluation"]
    spec["rollout"] |= {
        "numRollout": 5,
        "nSamplesPerPrompt": 2,
        "overSamplingBatchSize": 9,
        "sampling": {"temperature": 1.0, "maxResponseLength": 12, "stop": ["u", "f"]},
        "dynamicFilter": "nonzero_std",
        "partialRollout": True,
        "partialRolloutTokens": 4,
    }
    spec["tracking"]["logCompletions"] = 100
    return run


def test_partial_rollouts_resume_to_the_same_weights(make: Make) -> None:
    whole = dynamic(make())
    whole.run()
    records = whole.records("rl")
    assert sum(record["sampling/groups_left_unfinished"] for record in records) > 0
    assert sum(record["sampling/groups_kept_from_before"] for record in records) > 0
    completions = whole.records("completion", "completions.jsonl")
    assert any(len(record["policy_versions"]) > 1 for record in completions)
    assert [sum(r["rollout"] == n for r in completions) for n in range(1, 6)] == [6] * 5

    killed = dynamic(make())
    last = whole.calls * 2 // 3

    def kill(number: int, stop: StopFlag) -> None:
        if number == last:
            raise Killed

    with pytest.raises(Killed):
        killed.run(kill)
    assert 2 < killed.last_step() < 7
    killed.run()
    assert killed.summary()["weights_digest"] == whole.summary()["weights_digest"]


def test_a_generate_only_job_is_stopped_and_resumed(make: Make) -> None:
    run = make()
    spec: dict[str, Any] = run.manifest["spec"]
    spec["mode"] = "Generate"
    spec["output"] = {"completedOnly": False}
    spec["rollout"] |= {"numRollout": 100, "batchSize": 16, "nSamplesPerPrompt": 2}
    with pytest.raises(Stop):
        run.run(lambda number, stop: stop.request("suspend", "enough") if number == 2 else None)
    assert run.last_step() == 1
    assert not (run.directory / "samples.jsonl").exists()
    run.run()
    assert (run.summary()["steps"], run.summary()["total_steps"], run.summary()["state"]) == (3, 3, "Succeeded")
    path = run.directory / "samples.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert sorted((row["row"], row["index"]) for row in rows) == [(row, index) for row in range(40) for index in (0, 1)]
    assert all(row["reward"] is not None and row["policy_version"] == 0 for row in rows)
    assert run.summary()["samples_kept"] == len(rows)
    tokenizer = load_tokenizer(RLJob.model_validate(run.manifest).spec.model, run.directory)
    for form in ("segments", "prompt_completion"):
        dataset = SftDataset.model_validate({"path": str(path), "format": form})
        source = SftSource(dataset, tokenizer, run.directory, batch_size=8, seed=1, max_length=160)
        assert len(source) == len(rows)


def test_an_evaluate_only_job_goes_on_with_the_next_set(make: Make) -> None:
    run = make()
    spec: dict[str, Any] = run.manifest["spec"]
    spec["mode"] = "Evaluate"
    del spec["data"]
    (first,) = spec["evaluation"]["datasets"]
    sampled = {"name": "sampled", "nSamplesPerPrompt": 4, "sampling": {"temperature": 1.0, "maxResponseLength": 12}}
    spec["evaluation"]["datasets"].append(first | sampled)

    def kill(number: int, stop: StopFlag) -> None:
        if number == 2:
            raise Killed

    with pytest.raises(Killed):
        run.run(kill)
    assert run.last_step() == 1
    run.run()
    assert [record["name"] for record in run.records("evaluation")] == ["sampled/final"]
    assert (run.summary()["steps"], run.summary()["total_steps"], run.summary()["state"]) == (2, 2, "Succeeded")
    scores = run.summary()["evaluations"]
    assert set(scores) == {"held-out/final", "sampled/final"}
    assert {"pass@1", "pass@2", "pass@4"} <= set(scores["sampled/final"])
