"""Whole runs: dynamic sampling with partial rollouts is exactly resumed; jobs that only generate or evaluate."""

import json
import signal
from pathlib import Path
from typing import Any

import pytest
from rljob_trainer.config.data import SftDataset
from rljob_trainer.data.sft import SftSource
from rljob_trainer.models import load_tokenizer

from .conftest import TinyRun

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(900)]


@pytest.fixture
def other(tiny_world: Path, tmp_path_factory: pytest.TempPathFactory) -> TinyRun:
    directory = tmp_path_factory.mktemp("other")
    (directory / "world").symlink_to(tiny_world)
    return TinyRun(directory)


def test_partial_rollouts_resume_to_the_same_weights(tiny: TinyRun, other: TinyRun) -> None:
    for run in (tiny, other):
        spec: dict[str, Any] = run.manifest["spec"]
        spec["sft"]["numSteps"] = 2
        del spec["evaluation"]
        spec["rollout"] |= {
            "numRollout": 5,
            "nSamplesPerPrompt": 2,
            "overSamplingBatchSize": 9,
            "sampling": {"temperature": 1.0, "maxResponseLength": 12, "stop": ["u", "f"]},  # lengths that differ
            "dynamicFilter": "nonzero_std",
            "partialRollout": True,
            "partialRolloutTokens": 4,
        }
        spec["tracking"] |= {"tensorboard": {}, "logCompletions": 100}
    ended = other.run()
    assert ended.code == 0, ended.stderr
    records = other.records("rl")
    assert sum(record.get("sampling/groups_left_unfinished", 0) for record in records) > 0
    assert sum(record.get("sampling/groups_kept_from_before", 0) for record in records) > 0
    (completions,) = other.directory.glob("attempts/*/completions.jsonl")
    versions = [json.loads(line)["policy_versions"] for line in completions.read_text().splitlines()]
    assert any(len(found) > 1 for found in versions)

    tiny.run_until(lambda run: len(run.records("rl")) >= 2, signal.SIGKILL)
    assert 2 < tiny.last_step() < 7
    ended = tiny.run()
    assert ended.code == 0, ended.stderr
    assert tiny.summary()["weights_digest"] == other.summary()["weights_digest"]
    names = [path.name for path in (tiny.directory / "tensorboard").iterdir()]
    assert [sum(f"000{attempt}-" in name for name in names) for attempt in (1, 2)] == [1, 1]


def test_generate_only_and_evaluate_only(tiny: TinyRun, other: TinyRun) -> None:
    spec: dict[str, Any] = tiny.manifest["spec"]
    spec["mode"] = "Generate"
    spec["output"] = {"completedOnly": False}
    spec["rollout"] |= {"numRollout": 100, "batchSize": 16, "nSamplesPerPrompt": 2}
    ended = tiny.run_until(lambda run: len(run.records("generate")) >= 1, signal.SIGTERM)
    assert ended.code == 4, ended.stderr
    ended = tiny.run()
    assert ended.code == 0, ended.stderr
    assert (tiny.progress()["step"], tiny.progress()["totalSteps"], tiny.progress()["state"]) == (3, 3, "Succeeded")
    path = tiny.directory / "samples.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert sorted((row["row"], row["index"]) for row in rows) == [(row, index) for row in range(40) for index in (0, 1)]
    assert all(row["reward"] is not None and row["policy_version"] == 0 for row in rows)
    assert tiny.summary()["samples_kept"] == len(rows)
    tokenizer = load_tokenizer(tiny.job().spec.model, tiny.directory)
    for form in ("segments", "prompt_completion"):
        dataset = SftDataset.model_validate({"path": str(path), "format": form})
        source = SftSource(dataset, tokenizer, tiny.directory, batch_size=8, seed=1, max_length=160)
        assert len(source) == len([row for row in rows if row["completion"]])

    spec = other.manifest["spec"]
    spec["mode"] = "Evaluate"
    del spec["data"]
    (first,) = spec["evaluation"]["datasets"]
    sampled = {"name": "sampled", "nSamplesPerPrompt": 4, "sampling": {"temperature": 1.0, "maxResponseLength": 12}}
    spec["evaluation"]["datasets"].append(first | sampled)
    ended = other.run()
    assert ended.code == 0, ended.stderr
    assert (other.progress()["step"], other.progress()["totalSteps"], other.progress()["state"]) == (2, 2, "Succeeded")
    scores = other.summary()["evaluations"]
    assert set(scores) == {"held-out/final", "sampled/final"}
    assert {"pass@1", "pass@2", "pass@4"} <= set(scores["sampled/final"])
