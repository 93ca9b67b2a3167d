"""`rljob` as its user meets it: what is printed, where, and the exit code."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from rljob_api.errors import UserError
from rljob_api.rules.checks import check
from rljob_cli import local, plans
from rljob_cli.app import app
from rljob_cli.docs import cli_reference
from rljob_cli.exits import MEANINGS
from rljob_cli.manifest import load_manifest
from typer.testing import CliRunner

ROOT = Path(__file__).parents[2]
EXAMPLES = sorted((ROOT / "examples").glob("**/*.yaml"))
MANIFEST = """\
apiVersion: rljob.io/v1alpha1
kind: RLJob
metadata: {name: demo}
spec:
  model:
    tokenizerPath: tokenizer
    randomInit: {hiddenSize: 96, intermediateSize: 256, numHiddenLayers: 3}
    dtype: float32
  data: {train: {path: train.jsonl, maxPromptLength: 128}}
  rollout:
    engine: torch
    numRollout: 5
    sampling: {maxResponseLength: 128}
  reward: {functions: [{name: em}]}
  trainer: {backend: fsdp}
"""

runner = CliRunner()


@pytest.fixture
def manifest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.chdir(tmp_path)
    Path("job.yaml").write_text(MANIFEST)
    return "job.yaml"


def said(text: str) -> str:
    """Text without the line breaks of the terminal."""
    return " ".join(text.split())


def test_a_valid_manifest(manifest: str) -> None:
    result = runner.invoke(app, ["validate", manifest])
    assert result.exit_code == 0
    assert said(result.stdout) == "job.yaml: RLJob demo is valid"


def test_all_problems_of_all_files_are_told_on_standard_error(manifest: str) -> None:
    Path("bad.yaml").write_text(MANIFEST.replace("numRollout", "numRolout"))
    result = runner.invoke(app, ["validate", "bad.yaml", "missing.yaml", manifest])
    assert result.exit_code == 2
    assert "error: bad.yaml:12: spec.rollout.numRolout: unknown field; did you mean numRollout?" in said(result.stderr)
    assert "error: missing.yaml: no such file" in said(result.stderr)
    assert said(result.stdout) == "job.yaml: RLJob demo is valid"


def test_problems_between_fields_have_lines_too(manifest: str) -> None:
    result = runner.invoke(app, ["validate", manifest, "--set", "spec.trainer.globalBatchSize=100"])
    assert result.exit_code == 2
    assert "16 × 8 = 128 samples per rollout, not a multiple of globalBatchSize 100" in said(result.stderr)
    moved = runner.invoke(
        app,
        [
            "validate",
            manifest,
            "--set",
            "spec.lifecycle.earlyStop.metric=evaluation/x",
            "--set",
            "spec.lifecycle.earlyStop.atLeast=1",
        ],
    )
    assert "spec.lifecycle.earlyStop.metric: evaluation/x names no evaluation set; there are: none" in said(
        moved.stderr
    )


@pytest.mark.parametrize("form", ["json", "yaml"])
def test_programs_read_the_same_facts(manifest: str, form: str) -> None:
    Path("bad.yaml").write_text(MANIFEST.replace("fsdp", "megatron").replace("float32", "bfloat16"))
    result = runner.invoke(app, ["validate", "bad.yaml", "-o", form])
    assert result.exit_code == 2
    facts = yaml.safe_load(result.stdout)["files"][0]
    assert facts["valid"] is False
    assert facts["problems"][0]["path"] == "spec.trainer.backend"
    assert facts["problems"][0]["line"] == 15


@pytest.mark.parametrize("command", ["validate", "plan", "run"])
def test_a_free_form_map_that_is_too_large_is_refused_by_its_line(manifest: str, command: str) -> None:
    entries = ", ".join(f"k{i}: 1" for i in range(200))
    lists = f"[{', '.join(['{' + entries + '}'] * 60)}]"
    Path("large.yaml").write_text(MANIFEST.replace("  rollout:\n", f"  rollout:\n    engineArgs: {{a: {lists}}}\n"))
    result = runner.invoke(app, [command, "large.yaml"])
    assert result.exit_code == 2
    text = said(result.stderr)
    line = MANIFEST.splitlines().index("  rollout:") + 2
    assert f"large.yaml:{line}: spec.rollout.engineArgs: has more than 10000 entries" in text


def test_standard_input(manifest: str) -> None:
    result = runner.invoke(app, ["validate", "-"], input=MANIFEST)
    assert result.exit_code == 0


def test_the_plan_adds_up(manifest: str) -> None:
    result = runner.invoke(app, ["plan", manifest, "-o", "json", "--set", "trainer.numStepsPerRollout=4"])
    assert result.exit_code == 0
    plan = json.loads(result.stdout)
    assert plan["batch"]["samplesPerRollout"] == 128
    assert plan["batch"]["globalBatchSize"] == 32
    assert plan["steps"] == {"rollouts": 5, "sft": 0, "rl": 20, "total": 20}
    assert plan["gpus"]["total"] == 0
    assert plan["pods"] == {"head": 1, "trainer": 1, "rollout": 1, "retriever": 0}
    kinds = {child["kind"] for child in plan["children"]}
    assert {"RayJob", "ConfigMap", "Role", "Lease", "PersistentVolumeClaim"} <= kinds


def test_the_plan_names_the_queue(manifest: str) -> None:
    queue = ["--set", "lifecycle.queue.name=team-a", "--set", "lifecycle.queue.priorityClass=high"]
    assert json.loads(runner.invoke(app, ["plan", manifest, "-o", "json", *queue]).stdout)["queue"] == {
        "name": "team-a",
        "priorityClass": "high",
    }
    text = said(runner.invoke(app, ["plan", manifest, *queue]).stdout)
    assert "each attempt waits for Kueue in LocalQueue team-a, priority class high" in text
    assert "queue" not in said(runner.invoke(app, ["plan", manifest]).stdout)


def test_the_plan_for_people(manifest: str) -> None:
    result = runner.invoke(app, ["plan", manifest])
    assert result.exit_code == 0
    text = said(result.stdout)
    assert "16 prompts × 8 samples = 128 samples = 128 per optimizer step × 1" in text
    assert "parameters, embeddings not counted" in text


def test_the_plan_shows_the_objects_in_full(manifest: str) -> None:
    result = runner.invoke(app, ["plan", manifest, "--manifests"])
    assert result.exit_code == 0
    objects = list(yaml.safe_load_all(result.stdout))
    assert objects[-1]["kind"] == "RayJob"
    assert objects[-1]["spec"]["rayClusterSpec"]["workerGroupSpecs"]


def test_the_plan_of_a_broken_job_says_what_is_known_and_fails(manifest: str) -> None:
    result = runner.invoke(app, ["plan", manifest, "--set", "spec.trainer.globalBatchSize=7", "-o", "json"])
    assert result.exit_code == 2
    plan = json.loads(result.stdout)
    assert plan["batch"] is None
    assert plan["children"] == []
    assert plan["problems"][0]["path"] == "spec.trainer.globalBatchSize"


def test_run_refuses_before_anything_starts(manifest: str) -> None:
    result = runner.invoke(app, ["run", manifest, "--set", "spec.rollout.engine=sglang"])
    assert result.exit_code == 2
    assert "spec.rollout.engine: sglang needs GPUs" in said(result.stderr)
    assert not Path("runs").exists()


@pytest.mark.parametrize("code", [0, 1, 4])
def test_run_hands_the_job_over_and_its_exit_code_back(
    manifest: str, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    calls = []

    def run_local(job, directory, *, code, quiet):
        calls.append((job.spec.rollout.num_rollout, job.spec.checkpoint.overwrite, directory, code, quiet))
        return exit_code

    exit_code = code
    monkeypatch.setattr("rljob_trainer.local.run.run_local", run_local)
    Path("hooks").mkdir()
    options = ["--set", "rollout.numRollout=2", "--fresh", "--code", "hooks", "-q"]
    result = runner.invoke(app, ["run", manifest, *options])
    assert result.exit_code == code
    assert calls == [(2, "Replace", Path("runs/demo"), Path("hooks"), True)]


def test_run_as_json_prints_the_summary_alone(manifest: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def run_local(job, directory, *, code, quiet):
        assert quiet
        directory.mkdir(parents=True)
        (directory / "summary.json").write_text('{"state": "Succeeded", "steps": 3}')
        return 0

    monkeypatch.setattr("rljob_trainer.local.run.run_local", run_local)
    result = runner.invoke(app, ["run", manifest, "-o", "json"])
    assert result.exit_code == 0
    assert json.loads(result.stdout) == {"job": "demo", "exitCode": 0, "state": "Succeeded", "steps": 3}


def test_an_interrupt_is_130(manifest: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def run_local(*_: object, **__: object) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr("rljob_trainer.local.run.run_local", run_local)
    assert runner.invoke(app, ["run", manifest]).exit_code == 130


def test_a_bug_is_a_sentence_and_a_log(manifest: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def broken(*_: object) -> None:
        raise ZeroDivisionError("oh")

    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    monkeypatch.setattr(plans, "shape_of", broken)
    result = runner.invoke(app, ["plan", manifest])
    assert result.exit_code == 1
    assert "error: rljob failed: ZeroDivisionError: oh" in said(result.stderr)
    assert "Traceback" not in result.stderr
    (log,) = tmp_path.glob("rljob-*.log")
    assert "ZeroDivisionError" in log.read_text()


def test_a_missing_extra_is_named(manifest: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "rljob_trainer.local.run", None)
    result = runner.invoke(app, ["run", manifest])
    assert result.exit_code == 2
    assert "install rljob[trainer,retriever]" in said(result.stderr)


def test_schema() -> None:
    assert json.loads(runner.invoke(app, ["schema"]).stdout)["title"] == "RLJob"
    definition = yaml.safe_load(runner.invoke(app, ["schema", "--crd"]).stdout)
    assert definition["metadata"]["name"] == "rljobs.rljob.io"
    assert json.loads(runner.invoke(app, ["schema", "--crd", "-o", "json"]).stdout) == definition
    assert runner.invoke(app, ["schema", "--crd", "--json-schema"]).exit_code == 2


def test_version() -> None:
    facts = json.loads(runner.invoke(app, ["version", "-o", "json"]).stdout)
    assert facts["api"] == "rljob.io/v1alpha1"
    assert facts["rljob"]


def test_help_tells_the_exit_codes_and_usage_errors_are_2() -> None:
    shown = said(runner.invoke(app, ["--help"]).stdout)
    for code in MEANINGS:
        assert f"{code}:" in shown
    assert runner.invoke(app, ["validate"]).exit_code == 2
    assert runner.invoke(app, ["nonsense"]).exit_code == 2


def test_a_reader_that_goes_away_is_no_error() -> None:
    command = f"{sys.executable} -m rljob_cli schema | head -n 1; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=60, check=False)
    assert done.stdout.strip() == "{"
    assert "Traceback" not in done.stderr


def test_the_reference_is_fresh() -> None:
    assert (ROOT / "docs/cli.md").read_text(encoding="utf-8") == cli_reference(), "stale: run `make generate`"


RECIPES = {
    "search-r1-qwen2.5-3b": "search-r1",
    "openr1-sft-qwen2.5-1.5b": "openr1-sft",
    "openr1-grpo-r1-distill-1.5b": "openr1-grpo",
    "dapo-math-qwen3-4b": "dapo-math",
}
"""Recipes and the beginning of their overlays' names."""


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.name)
def test_examples_are_valid(example: Path) -> None:
    documents = [d for d in yaml.safe_load_all(example.read_text()) if d]
    if any(document.get("kind") != "RLJob" for document in documents):
        pytest.skip("not a manifest of an RLJob")
    result = runner.invoke(app, ["validate", str(example)])
    assert result.exit_code == 0, result.stderr


@pytest.mark.parametrize("recipe", RECIPES)
def test_recipes_and_their_variants_ask_for_nothing_that_is_refused(recipe: str) -> None:
    path = ROOT / f"examples/{recipe}.yaml"
    variants = sorted((ROOT / "examples/overlays").glob(f"{RECIPES[recipe]}-*.yaml"))
    for overlay in [None, *variants]:
        job = load_manifest(str(path), overlays=[str(overlay)] if overlay else None).job
        assert [str(problem) for problem in check(job)] == []


def test_a_recipe_is_planned() -> None:
    result = runner.invoke(app, ["plan", str(ROOT / "examples/search-r1-qwen2.5-3b.yaml")])
    assert result.exit_code == 0, result.stderr
    assert "4 ranks = TP 2 × PP 1 × CP 1 × DP 2" in result.stdout
    assert "GPUs in all    8" in result.stdout
    assert "Traceback" not in result.stderr


def test_problems_are_refused_in_the_manifest_error(manifest: str) -> None:
    with pytest.raises(UserError, match=r"job\.yaml: spec\.trainer\.megatronArgs: has no effect with backend fsdp"):
        local.refuse_problems(load_manifest(manifest, ["trainer.megatronArgs={a: 1}"]))
