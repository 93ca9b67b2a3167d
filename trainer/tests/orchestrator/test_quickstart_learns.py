"""The quickstart of examples/: it must really learn, and only by searching."""

import json
from pathlib import Path
from typing import Any

import pytest
from rljob_api.manifest.load import load
from rljob_api.v1alpha1.job import RLJob
from rljob_trainer.local.run import run_local

QUICKSTART = Path(__file__).resolve().parents[3] / "examples/quickstart.yaml"
pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.first, pytest.mark.timeout(3600)]


def learns(directory: Path, job: RLJob) -> dict[str, Any]:
    """Run it, and check what it has learnt. Returns its summary."""
    assert run_local(job, directory, quiet=True) == 0
    summary: dict[str, Any] = json.loads((directory / "summary.json").read_text())
    assert summary["steps"] == summary["total_steps"]
    assert summary["em_after_sft"] <= 0.5
    assert summary["em_after_grpo"] >= 0.85
    # The held-out facts are not in the weights: without documents about them there is nothing to answer from.
    assert summary["em_without_retriever"] <= 0.02
    assert summary["peak_memory_bytes"] <= 6e9
    final = summary["evaluations"]["held-out/final"]
    assert final["score/madeup_1hop"] >= 0.8
    assert final["score/madeup_2hop"] >= 0.8
    # The rise is the reward's own: what is trained on and what is evaluated go up together.
    rewards = [
        record["reward"]
        for path in directory.glob("attempts/*/metrics.jsonl")
        for record in map(json.loads, path.read_text().splitlines())
        if record["kind"] == "rl"
    ]
    assert sum(rewards[-5:]) / 5 > sum(rewards[:5]) / 5 + 0.2
    return summary


def test_grpo_teaches_what_sft_did_not(tmp_path: Path) -> None:
    """Half of the steps of SFT, by far the longest part, teach the format; all rollouts are there."""
    job = load(QUICKSTART)
    assert job.spec.sft is not None
    job.spec.sft.num_steps = 300
    learns(tmp_path, job)


@pytest.mark.nightly(reason="all 600 steps of SFT, nearly twice the time: the file as users run it")
def test_the_quickstart_as_it_stands_learns(tmp_path: Path) -> None:
    assert learns(tmp_path, load(QUICKSTART))["total_steps"] == 600 + 30
