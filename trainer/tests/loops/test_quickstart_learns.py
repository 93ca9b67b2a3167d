"""The quickstart of examples/: it must really learn, and only by searching."""

import json
from pathlib import Path
from typing import Any

import pytest
from rljob_trainer.config.load import load
from rljob_trainer.loops.local import run_local

QUICKSTART = Path(__file__).resolve().parents[3] / "examples/quickstart.yaml"
pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(3600)]


def learns(directory: Path, rollouts: int | None = None) -> dict[str, Any]:
    """Run it, with fewer rollouts where a number is given, and check what it has learnt. Returns its summary."""
    job = load(QUICKSTART)
    if rollouts is not None:
        job.spec.rollout.num_rollout = rollouts
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
    count = 5 if rollouts is None else 3
    assert sum(rewards[-count:]) / count > sum(rewards[:count]) / count + 0.2
    return summary


def test_grpo_teaches_what_sft_did_not(tmp_path: Path) -> None:
    """Ten rollouts teach what the evaluation asks for; the other twenty are the margin of other seeds."""
    learns(tmp_path, rollouts=10)


@pytest.mark.nightly(reason="all thirty rollouts, four minutes: the file as users run it")
def test_the_quickstart_as_it_stands_learns(tmp_path: Path) -> None:
    assert learns(tmp_path)["total_steps"] == 600 + 30
