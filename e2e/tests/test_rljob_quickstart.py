"""The main path: install, apply the quickstart, watch it learn, see it succeed.

A Prometheus scrapes it meanwhile, and every panel of every dashboard must have data of this job.
"""

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from e2e.support import prometheus
from e2e.support.jobs import JOB_LABEL, Job, example
from e2e.support.kubectl import Kubectl
from e2e.support.observed import CHART, draw_boards, panels, rule_errors, scraped, scraping
from e2e.support.wait import wait_for
from e2e.tests.conftest import RELEASE, SYSTEM, helm

pytestmark = [pytest.mark.cluster, pytest.mark.first, pytest.mark.timeout(2700)]

# Enough of the quickstart for the held-out score to rise from where SFT leaves it.
SHORTENED = {
    "sft": {"numSteps": 400},
    "rollout": {"numRollout": 12},
    "evaluation": {"interval": 0},
    # Its weights are all close to 1 here; they have panels of their own.
    "algorithm": {"tis": {"enabled": True}},
}
READER = "app.kubernetes.io/name=rljob-report"
PROCESSES = {"operator", "head", "trainer", "rollout", "retriever"}


@pytest.mark.usefixtures("installed_operator")
def test_quickstart_goes_through_its_phases_learns_and_fills_every_panel(
    kubectl: Kubectl, kubeconfig: str, tmp_path: Path
) -> None:
    if not prometheus.available():
        pytest.fail("no prometheus on the PATH, and no apt-get to fetch it by")
    set_ = ["--set=metrics.podMonitor.enabled=true"]
    rendered = yaml.safe_load_all(helm(kubeconfig, "template", RELEASE, str(CHART), "--namespace", SYSTEM, *set_))
    monitors = [item for item in rendered if item and item["kind"] == "PodMonitor"]
    with scraping(kubectl, monitors, tmp_path / "prometheus") as client:
        start = time.time()
        _goes_through_its_phases_and_learns(kubectl, kubeconfig, client, tmp_path)
        boards = panels(client, start, time.time(), kubectl.namespace, "quickstart")
        empty = [
            f"{name}/{panel.title}: {expr}" for name, all_ in boards.items() for panel in all_ for expr in panel.empty
        ]
        assert not empty, "\n".join(empty)
        assert not rule_errors(client)
        assert not [alert for alert in client.alerts() if alert["labels"].get("job_name") == "quickstart"]
    draw_boards(boards, Path(os.environ.get("RLJOB_E2E_PICTURES") or tmp_path))


def _goes_through_its_phases_and_learns(
    kubectl: Kubectl, kubeconfig: str, client: prometheus.Prometheus, folder: Path
) -> None:
    kubectl.apply(example("quickstart.yaml", "quickstart", SHORTENED))
    job = Job(kubectl, "quickstart")

    job.wait_phase("Running", seconds=240)
    wait_for("three Ray pods and the retriever", lambda: len(job.pods()) >= 4, seconds=60)
    for group in ("head", "trainer", "rollout", "retriever"):
        pods = job.pods(group)
        assert len(pods) == 1, f"{group}: {[p['metadata']['name'] for p in pods]}"
        for container in pods[0]["spec"]["containers"]:
            assert container["securityContext"]["allowPrivilegeEscalation"] is False
        assert pods[0]["spec"]["securityContext"]["runAsNonRoot"] is True
    assert job.wait_step(1, stage="SFT", seconds=120)["totalSteps"] == 412
    wait_for("an answer to the scrapes of every process", lambda: scraped(client) >= PROCESSES, seconds=60)

    done = job.wait_phase("Succeeded", seconds=600)
    assert done["step"] == done["totalSteps"] == 412
    scores = {name: float(value) for name, value in done["evaluation"].items()}
    assert scores["held-out/final"] > scores["held-out/after_sft"] + 0.05, scores
    assert float(done["reward"]) > 0
    assert {"Preparing", "Starting", "Running", "Succeeded"} <= set(job.phases), job.phases
    assert job.condition("Complete")["status"] == "True"
    assert all(c["observedGeneration"] == 1 for c in done["conditions"])
    assert done["attempt"] == 1

    # The pods are released, what was learned is kept.
    wait_for("the job's pods gone", lambda: not job.holding(), seconds=120)
    assert kubectl.names("pvc", "-l", f"{JOB_LABEL}=quickstart")

    row = kubectl("get", "rlj", "quickstart").splitlines()
    assert row[0].split()[1:7] == ["PHASE", "STEP", "REWARD", "TOK/S", "ATTEMPT", "AGE"]
    assert "Succeeded" in row[1]
    assert "412/412" in row[1]
    assert _rljob(kubectl, kubeconfig, "status", "quickstart")["phase"] == "Succeeded"

    # The job has no pods any more: its files are read in a pod made for that, and removed again.
    page = folder / "report.html"
    told = _rljob(kubectl, kubeconfig, "report", "quickstart", "--out", str(page))
    assert told["state"] == "Succeeded"
    assert told["records"] > 12, "every rollout, and what SFT and the evaluations recorded"
    assert "<svg" in page.read_text(encoding="utf-8")
    wait_for("the reader gone", lambda: not kubectl.names("pods", "-l", READER), seconds=60)


def _rljob(kubectl: Kubectl, kubeconfig: str, *words: str) -> dict[str, Any]:
    """What a command of the CLI prints as JSON, in a process without anything of this one's environment."""
    command = [sys.executable, "-m", "rljob_cli", *words, "-n", kubectl.namespace, "-o", "json"]
    env = {"KUBECONFIG": kubeconfig, "PATH": "/usr/bin:/bin", "HOME": "/nonexistent"}
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=180, check=False)
    assert done.returncode == 0, done.stderr
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer
