"""`kubectl scale rljob/x` while it trains: engines come and go, no step and no attempt is lost."""

import pytest

from e2e.support.jobs import Job, example
from e2e.support.kubectl import Kubectl
from e2e.support.wait import wait_for

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(2700), pytest.mark.usefixtures("installed_operator")]
SHORT = {
    "data": {
        "prepare": {"args": {"entities": 400, "heldOutEntities": 100, "demonstrations": 2000, "trainQuestions": 400}}
    },
    "sft": {"numSteps": 10, "batchSize": 32},
    "rollout": {"numRollout": 500},
    "evaluation": {"interval": 0, "withoutRetriever": False},
    "lifecycle": {"terminationGracePeriodSeconds": 15},
}
TOTAL = 510


@pytest.mark.nightly(
    reason="minutes of training; engines that come and go are tested without a cluster, scaling on an apiserver"
)
def test_scaled_up_and_down_while_it_trains(kubectl: Kubectl) -> None:
    kubectl.apply(example("quickstart.yaml", "scaled", SHORT))
    job = Job(kubectl, "scaled")

    job.wait_step(12, stage="RL", seconds=300)
    (first,) = job.engines()
    kubectl("scale", "rljob/scaled", "--replicas=2")
    wait_for("two engines serving", lambda: len(job.engines()) == 2, seconds=240)
    assert job.status()["step"] < TOTAL, "it trains on"

    kubectl("scale", "rljob/scaled", "--replicas=1")
    wait_for("one rollout pod", lambda: len(job.pods("rollout")) == 1, seconds=240)
    (left,) = job.engines()
    assert left in {pod["metadata"]["name"] for pod in job.pods("rollout")}, "the pod that went was the drained one"
    assert first

    # That scaled runs end like others is shown without a cluster (trainer/tests/orchestrator/test_several_workers.py).
    before = job.status()["step"]
    job.wait_step(before + 5, stage="RL", seconds=120)
    assert job.status()["attempt"] == 1
    assert job.condition("RolloutScaled")["status"] == "True"
