"""The recipes of examples/ run, shrunk by their overlays: tiny models, made-up rows in the sources' schemas, two
steps."""

import json
from pathlib import Path
from typing import Any

import pytest
from rljob_cli.manifest import load_manifest
from rljob_trainer.local.run import run_local

EXAMPLES = Path(__file__).resolve().parents[3] / "examples"
pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(900), pytest.mark.usefixtures("warm_driver")]


def run(recipe: str, overlay: str, directory: Path, *sets: str) -> dict[str, Any]:
    """Run it and return its summary."""
    overlays = [str(EXAMPLES / f"overlays/{overlay}.yaml")]
    job = load_manifest(str(EXAMPLES / f"{recipe}.yaml"), list(sets), overlays).job
    assert run_local(job, directory, quiet=True) == 0
    summary: dict[str, Any] = json.loads((directory / "summary.json").read_text())
    assert summary["state"] == "Succeeded"
    assert summary["steps"] == summary["total_steps"] == 2
    return summary


def records(directory: Path, kind: str) -> list[dict[str, Any]]:
    lines = [line for path in directory.glob("attempts/*/metrics.jsonl") for line in path.read_text().splitlines()]
    return [record for record in map(json.loads, lines) if record["kind"] == kind]


def test_search_r1(tmp_path: Path) -> None:
    summary = run("search-r1-qwen2.5-3b", "search-r1-tiny", tmp_path)
    final = summary["evaluations"]["search-r1/final"]
    sources = {name.removeprefix("score/") for name in final if name.startswith("score/")}
    assert sources == {"nq", "triviaqa", "popqa", "hotpotqa", "2wikimultihopqa", "musique", "bamboogle"}
    assert all("tis_weight_mean" in record or "tis_mean" in record for record in records(tmp_path, "rl"))


def test_openr1_sft_then_grpo(tmp_path: Path) -> None:
    run("openr1-sft-qwen2.5-1.5b", "openr1-sft-tiny", tmp_path / "sft")
    assert len(records(tmp_path / "sft", "sft")) == 2
    (model,) = (tmp_path / "sft").glob("attempts/*/model")
    chained = ["spec.model.randomInit=null", f"spec.model.path={model}"]
    run("openr1-grpo-r1-distill-1.5b", "openr1-grpo-tiny", tmp_path / "grpo", *chained)
    completions = next((tmp_path / "grpo").glob("attempts/*/completions.jsonl")).read_text().splitlines()
    assert {"math", "format", "tag_count"} <= set(json.loads(completions[0])["reward_parts"])
    assert list((tmp_path / "grpo").rglob("*.wandb"))


def test_dapo_math(tmp_path: Path) -> None:
    summary = run("dapo-math-qwen3-4b", "dapo-math-tiny", tmp_path)
    assert {"pass@1", "pass@2"} <= set(summary["evaluations"]["aime-2024/final"])
