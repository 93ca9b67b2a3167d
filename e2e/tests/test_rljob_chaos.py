"""Pods of a job, and what it relies on, killed while it trains: one job, one blow after another.

The job must end with every step trained. Only a lost head or trainer may cost an attempt, and no more steps than lie
between two commits.
"""

import pytest

from e2e.support.chaos import (
    OPERATOR_LABELS,
    kill_engine,
    kill_group,
    kill_operator,
    kill_retriever,
    strike,
    without_kuberay,
)
from e2e.support.jobs import Job, example
from e2e.support.kubectl import Kubectl
from e2e.tests.conftest import RELEASE, ROOT, SYSTEM, helm

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.serial,
    pytest.mark.timeout(2700),
    pytest.mark.usefixtures("installed_operator"),
]

SAVE_INTERVAL = 4
SHORT = {
    "data": {
        "prepare": {"args": {"entities": 400, "heldOutEntities": 100, "demonstrations": 2000, "trainQuestions": 400}}
    },
    "sft": {"numSteps": 20, "batchSize": 32},
    # Each blow takes two reports, that is, ten seconds of training: enough steps for a machine of three a second.
    "rollout": {"numRollout": 150},
    "evaluation": {"interval": 0, "withoutRetriever": False},
    "checkpoint": {"saveInterval": SAVE_INTERVAL, "sftSaveInterval": 5},
    "lifecycle": {"terminationGracePeriodSeconds": 15},
}
TOTAL = 170


def upgrade(system: Kubectl) -> None:
    """Another value: another revision, another pod; the CRD is applied again."""
    before = set(system.names("pods", "-l", OPERATOR_LABELS))
    helm(
        system.kubeconfig, "upgrade", RELEASE, str(ROOT / "charts/rljob"), "--namespace", SYSTEM, "--reuse-values",
        "--set", "operator.resyncSeconds=240", "--wait", "--timeout", "120s",
    )  # fmt: skip
    assert not before & set(system.names("pods", "-l", OPERATOR_LABELS))


def test_a_job_outlives_its_operator_engine_retriever_kuberay_an_upgrade_and_its_head(
    kubectl: Kubectl, system: Kubectl
) -> None:
    kubectl.apply(example("quickstart.yaml", "struck", SHORT))
    job = Job(kubectl, "struck")
    # Three operators in a row die while the job comes up: each goes on where the one before stood.
    phases = ("Pending", "Preparing", "Starting", "Running")
    for first in (0, 2, 3):
        job.wait_phase(*phases[first:], seconds=240)
        kill_operator(system)
    job.wait_step(22, stage="RL", seconds=300)
    assert (job.status()["attempt"], job.status().get("failedAttempts", 0)) == (1, 0)

    killed = strike(job, "operator killed", lambda: kill_operator(system))
    assert killed.attempts == 0, "nothing of an attempt asks the operator"

    engine = strike(job, "rollout pod killed", lambda: kill_engine(job))
    assert engine.attempts == 0, "an engine is replaced, its samples are made again"

    retriever = strike(job, "retriever pod killed", lambda: kill_retriever(job))
    assert retriever.attempts == 0, "searches are asked again until it is back"
    assert job.condition("RetrieverReady")["status"] == "True"

    with without_kuberay(system) as kill_kuberay:
        absent = strike(job, "KubeRay killed and away", kill_kuberay)
    assert absent.attempts == 0, "nobody needs KubeRay while nothing changes"

    children = job.generations()
    upgraded = strike(job, "operator upgraded by Helm", lambda: upgrade(system))
    assert upgraded.attempts == 0
    assert job.generations() == children, "the new operator finds everything as it wants it"

    head = strike(job, "head pod killed", lambda: kill_group(job, "head"), ends_attempt=True)
    assert head.attempts == 1
    assert head.lost_steps <= SAVE_INTERVAL

    done = job.wait_phase("Succeeded", seconds=420)
    assert done["step"] == done["totalSteps"] == TOTAL
    assert done["attempt"] == 2, "KubeRay has not submitted it again by itself"
    first, second = done["attempts"]
    # The kubelet ends the processes of a pod that is gone already by SIGTERM: the driver may still commit, and its word
    # come before the operator has missed the pod.
    failed = first["state"] == "Failed"
    assert (first["state"], first["reason"]) == (("Failed", "PodLost") if failed else ("Suspended", "Suspended"))
    assert second["startStep"] >= first["committedStep"] > 20
    assert done["failedAttempts"] == int(failed)
