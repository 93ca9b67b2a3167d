"""`rljob top`, `rljob report` and the kubectl plugin, apart from a cluster."""

import base64
import io
import json
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from rljob_cli import report
from rljob_cli.brief import brief
from rljob_cli.exits import ClusterError
from rljob_cli.remote import readable
from rljob_cli.top import ordered, totals, view

SPEC: dict[str, Any] = {
    "model": {
        "randomInit": {"hiddenSize": 32, "intermediateSize": 48, "numHiddenLayers": 1},
        "tokenizerPath": "tokenizer",
    },
    "data": {"train": {"path": "x.jsonl"}},
    "rollout": {"engine": "sglang", "replicas": 2, "gpusPerEngine": 1},
    "trainer": {"gpusPerReplica": 2},
}


def job(name: str, phase: str, **status: Any) -> dict[str, Any]:
    return {
        "apiVersion": "rljob.io/v1alpha1",
        "kind": "RLJob",
        "metadata": {"name": name, "namespace": "team", "creationTimestamp": "2026-01-01T00:00:00Z"},
        "spec": SPEC,
        "status": {"phase": phase} | status,
    }


def test_running_jobs_come_first_with_what_they_hold() -> None:
    jobs = ordered(
        brief(one)
        for one in (
            job("b", "Pending"),
            job("c", "Running", reward="0.4", tokensPerSecond="900", goodput="0.725", progress="3/10", stage="RL"),
            job("a", "Running", tokensPerSecond="100"),
        )
    )
    assert [one["name"] for one in jobs] == ["a", "c", "b"]
    assert totals(jobs) == {"jobs": 3, "running": 2, "gpus": 8, "tokensPerSecond": 1000.0}
    out = io.StringIO()
    Console(file=out, width=160).print(view(jobs))
    lines = out.getvalue().splitlines()
    assert lines[0].startswith("3 jobs, 2 running, 8 GPUs, 1,000 tokens/s")
    assert lines[3].split()[:9] == ["team", "c", "Running", "RL", "3/10", "0.4", "900", "72%", "4"]


def test_a_spec_of_another_version_still_is_listed() -> None:
    assert brief(job("a", "Running") | {"spec": {"unheard": 1}})["gpus"] is None


class Files:
    """A cluster whose pod runs the collecting program here, in a folder."""

    namespace = "team"

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def pods(self, job: str, role: str) -> list[Any]:
        from kubernetes import client

        pod = client.V1Pod(metadata=client.V1ObjectMeta(name="head-0"), status=client.V1PodStatus(phase="Running"))
        return [pod] if role == "head" else []

    def execute(self, pod: str, command: list[str]) -> list[str]:
        assert command[3] == "/rljob/team/a"
        done = subprocess.run(
            [sys.executable, "-c", command[2], str(self.folder)], capture_output=True, text=True, timeout=60, check=True
        )
        return done.stdout.splitlines()


def recorded(folder: Path, steps: int) -> None:
    attempt = folder / "attempts" / "0001-abc"
    attempt.mkdir(parents=True)
    rows = [
        {
            "kind": "rl",
            "step": n,
            "reward": n / steps,
            "tokens_per_second": 10.0,
            "seconds/total": 2.0,
            "seconds/train": 1.0,
        }
        for n in range(1, steps + 1)
    ]
    (attempt / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_a_running_job_has_a_report(tmp_path: Path) -> None:
    recorded(tmp_path / "job", 5)
    got = tmp_path / "got"
    got.mkdir()
    stored = job("a", "Running", step=5, totalSteps=10)
    report.fetch(Files(tmp_path / "job"), stored, got)  # type: ignore[arg-type]
    from rljob_trainer.metrics.jsonl import read_history
    from rljob_trainer.report.html import render

    history = read_history(got)
    summary = report.summary_of(stored, history, got / "summary.json")
    assert (summary["state"], summary["steps"], summary["seconds"]) == ("Running", 5, 10.0)
    page = render(summary, history, [], stored["spec"])
    assert "Running · 5 of 10 steps" in page
    assert "polyline" in page


def test_long_files_are_cut_at_the_ends_of_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recorded(tmp_path / "job", 2000)
    script = report._SCRIPT.replace(str(report.LARGEST), "4096")
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path / "job")], capture_output=True, text=True, timeout=60, check=True
    )
    with tarfile.open(fileobj=io.BytesIO(base64.b64decode(done.stdout)), mode="r:gz") as archive:
        file = archive.extractfile("attempts/0001-abc/metrics.jsonl")
        assert file is not None
        steps = [json.loads(line)["step"] for line in file.read().splitlines()]
    assert steps[0] == 1
    assert steps[-1] == 2000
    assert len(steps) < 100


def test_what_cannot_be_read_is_said_in_a_sentence(tmp_path: Path) -> None:
    class Broken(Files):
        def execute(self, pod: str, command: list[str]) -> list[str]:
            return ["sh: python: not found"]

    with pytest.raises(ClusterError, match="cannot be read in pod head-0: sh: python: not found"):
        report.fetch(Broken(tmp_path), job("a", "Running"), tmp_path)  # type: ignore[arg-type]


def test_log_lines_read_well() -> None:
    line = {
        "time": "2026-01-01T12:00:01.500+00:00",
        "level": "info",
        "job": "a",
        "attempt": 1,
        "role": "rank",
        "index": 3,
    }
    assert readable(json.dumps(line | {"step": 12, "message": "saved"})) == "12:00:01 INFO    rank 3 step 12: saved"
    driver = {
        "time": "2026-01-01T12:00:01+00:00",
        "level": "error",
        "role": "driver",
        "message": "no",
        "exception": "E",
    }
    assert readable(json.dumps(driver)) == "12:00:01 ERROR   driver: no\nE"
    for other in ("Ray runtime started.", "{", '{"time": "yesterday"}', '{"time":1}'):
        assert readable(other) == other


def test_kubectl_finds_the_command(tmp_path: Path) -> None:
    plugin = Path(sys.executable).parent / "kubectl-rljob"
    done = subprocess.run([str(plugin), "status", "--help"], capture_output=True, text=True, timeout=60, check=True)
    assert "kubectl rljob status" in done.stdout
