"""What a user asks of a job that runs: its logs, where it is stuck, and that nobody else speaks to its Ray."""

import json
import subprocess
import sys

import pytest

from e2e.support.jobs import Job, example, merge
from e2e.support.kubectl import Kubectl
from e2e.support.wait import wait_for
from e2e.tests.test_rljob_faults import SHORT

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(2700), pytest.mark.usefixtures("installed_operator")]

_SIGNAL_RANK = """
import os, signal, sys
for entry in os.listdir("/proc"):
    if entry.isdigit() and open(f"/proc/{entry}/cmdline", "rb").read().startswith(b"ray::TrainerRank"):
        os.kill(int(entry), signal.Signals[sys.argv[1]])
        print(entry)
"""
_ASK_RAY = """
import sys, urllib.error, urllib.request
try:
    print(urllib.request.urlopen(sys.argv[1], timeout=5).status)
except urllib.error.HTTPError as error:
    print(error.code)
"""


def lines(kubectl: Kubectl, kubeconfig: str, name: str, role: str) -> list[dict[str, object]]:
    """Our own processes' lines among what `rljob logs NAME --role ROLE -o json` tells."""
    command = [sys.executable, "-m", "rljob_cli", "logs", name, "--role", role, "-n", kubectl.namespace, "-o", "json"]
    env = {"KUBECONFIG": kubeconfig, "PATH": "/usr/bin:/bin", "HOME": "/nonexistent"}
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    told = [json.loads(line)["line"] for line in done.stdout.splitlines()]
    return [json.loads(line) for line in told if line.startswith('{"time":')]


def test_a_running_job_answers(kubectl: Kubectl, kubeconfig: str) -> None:
    kubectl.apply(example("quickstart.yaml", "asked", merge(SHORT, {"rollout": {"numRollout": 400}})))
    job = Job(kubectl, "asked")
    job.wait_step(22, stage="RL", seconds=300)

    # Logs through the CLI. Ranks and engines have at least said that they are ready.
    for role in ("driver", "retriever", "trainer", "rollout"):
        told = lines(kubectl, kubeconfig, "asked", role)
        assert told, role
        assert {line["job"] for line in told} == {"asked"}, role

    # Ray's dashboard, by which anybody could run code in the job's pods, answers nobody without its token, not even
    # where the network lets one through.
    (head,) = job.pods("head")
    (trainer,) = job.pods("trainer")
    pod = trainer["metadata"]["name"]
    url = f"http://{head['status']['podIP']}:8265/api/jobs/"
    assert kubectl("exec", pod, "--", "python", "-c", _ASK_RAY, url).strip() in ("401", "403")

    # A rank that stands still is named, with its stack, within two minutes; then it goes on.
    pids = kubectl("exec", pod, "--", "python", "-c", _SIGNAL_RANK, "SIGSTOP").split()
    assert len(pids) == 1
    condition = wait_for(
        "it told", lambda: (it := job.condition("Stalled")).get("status") == "True" and it, seconds=140
    )
    assert condition["reason"] == "WorkerStalled"
    assert "rank 0" in condition["message"]
    told = wait_for(
        "its stack", lambda: (it := job.condition("Stalled")["message"]) and "stack in " in it and it, seconds=60
    )
    path = told.rpartition("stack in ")[2]
    stack = kubectl("exec", pod, "--", "cat", path)
    assert "it is stopped (by a signal)" in stack
    assert "Thread" in stack, "py-spy read the stopped process"
    kubectl("exec", pod, "--", "python", "-c", _SIGNAL_RANK, "SIGCONT")
    before = job.status()["step"]
    job.wait_step(before + 2, stage="RL", seconds=120)
    wait_for("it told", lambda: job.condition("Stalled")["status"] == "False", seconds=60)
    assert job.status()["attempt"] == 1
    kubectl("delete", "rljob", "asked", "--timeout=120s", seconds=130)
