"""The main path: install, apply the quickstart, watch it learn, see it succeed."""

import json
import subprocess
import sys

import pytest

from e2e.support.jobs import JOB_LABEL, Job, example
from e2e.support.kubectl import Kubectl
from e2e.support.wait import wait_for

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(900)]

# Enough of the quickstart for the held-out score to rise from where SFT leaves it.
SHORTENED = {
    "sft": {"numSteps": 400},
    "rollout": {"numRollout": 12},
    "evaluation": {"interval": 0},
}


@pytest.mark.usefixtures("installed_operator")
def test_quickstart_goes_through_its_phases_and_learns(kubectl: Kubectl, kubeconfig: str) -> None:
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
    wait_for("the job's pods gone", lambda: not job.pods(), seconds=120)
    assert kubectl.names("pvc", "-l", f"{JOB_LABEL}=quickstart")

    row = kubectl("get", "rlj", "quickstart").splitlines()
    assert row[0].split()[1:7] == ["PHASE", "STEP", "REWARD", "TOK/S", "ATTEMPT", "AGE"]
    assert "Succeeded" in row[1]
    assert "412/412" in row[1]
    command = [sys.executable, "-m", "rljob_cli", "status", "quickstart", "-n", kubectl.namespace, "-o", "json"]
    env = {"KUBECONFIG": kubeconfig, "PATH": "/usr/bin:/bin", "HOME": "/nonexistent"}
    answer = subprocess.run(command, env=env, capture_output=True, text=True, timeout=60, check=True)
    assert json.loads(answer.stdout)["phase"] == "Succeeded"
