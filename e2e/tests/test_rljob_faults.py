"""The worst days of one job: a pod killed, suspended in the middle, deleted in the middle."""

import pytest

from e2e.support.jobs import Job, example
from e2e.support.kubectl import Kubectl
from e2e.support.wait import wait_for

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(2700), pytest.mark.usefixtures("installed_operator")]

SAVE_INTERVAL = 2
# Short, but with commits in both stages and time to strike in.
SHORT = {
    "data": {
        "prepare": {"args": {"entities": 400, "heldOutEntities": 100, "demonstrations": 2000, "trainQuestions": 400}}
    },
    "sft": {"numSteps": 20, "batchSize": 32},
    "rollout": {"numRollout": 45},
    "evaluation": {"interval": 0, "withoutRetriever": False},
    "checkpoint": {"saveInterval": SAVE_INTERVAL, "sftSaveInterval": 5},
    "lifecycle": {"terminationGracePeriodSeconds": 15},
}
TOTAL = 65


def start(kubectl: Kubectl, name: str) -> Job:
    kubectl.apply(example("quickstart.yaml", name, SHORT))
    return Job(kubectl, name)


@pytest.mark.nightly(reason="the chaos of every change kills the head, which ends an attempt in the same way")
def test_killed_trainer_pod_costs_one_attempt_and_no_step(kubectl: Kubectl) -> None:
    job = start(kubectl, "trainer-killed")
    struck = 24
    job.wait_step(struck, stage="RL", seconds=300)
    (pod,) = job.pods("trainer")
    kubectl("delete", "pod", pod["metadata"]["name"], "--force", "--grace-period=0")

    done = job.wait_phase("Succeeded", seconds=420)
    assert done["step"] == done["totalSteps"] == TOTAL
    assert done["attempt"] == 2
    assert done["failedAttempts"] == 1
    first, second = done["attempts"]
    assert first["state"] == "Failed"
    assert second["startStep"] >= struck - SAVE_INTERVAL, "no more than one save interval was lost"
    assert "Retrying" in job.phases


def test_suspend_commits_releases_the_pods_and_resume_goes_on(kubectl: Kubectl) -> None:
    job = start(kubectl, "suspended")
    job.wait_step(23, stage="RL", seconds=300)
    kubectl("patch", "rljob", "suspended", "--type=merge", "-p", '{"spec":{"lifecycle":{"suspend":true}}}')
    suspended = job.wait_phase("Suspended", seconds=240)
    assert suspended["step"] < TOTAL
    assert suspended["lastCommit"]["step"] == suspended["step"], "nothing was lost"
    assert job.condition("Suspended")["status"] == "True"
    wait_for("pods released", lambda: not job.holding(), seconds=120)

    kubectl("patch", "rljob", "suspended", "--type=merge", "-p", '{"spec":{"lifecycle":{"suspend":false}}}')
    done = job.wait_phase("Succeeded", seconds=420)
    assert done["step"] == done["totalSteps"] == TOTAL
    assert done["failedAttempts"] == 0
    assert done["attempts"][-1]["startStep"] == suspended["step"]


def test_delete_in_the_middle_leaves_no_object_behind(kubectl: Kubectl) -> None:
    job = start(kubectl, "deleted")
    job.wait_step(1, seconds=300)
    assert job.leftovers()
    kubectl("delete", "rljob", "deleted", "--timeout=120s", seconds=130)
    wait_for("no object left", lambda: not job.leftovers(), seconds=120)


def test_a_job_that_cannot_work_says_so_and_creates_nothing(kubectl: Kubectl) -> None:
    # The API allows it, this operator was installed without Kueue: the schema passes, the operator answers.
    manifest = example("quickstart.yaml", "impossible", {"lifecycle": {"queue": {"name": "later"}}})
    kubectl.apply(manifest)
    job = Job(kubectl, "impossible")
    accepted = wait_for("Accepted", lambda: job.condition("Accepted"), seconds=60)
    assert accepted["status"] == "False"
    assert "spec.lifecycle.queue" in accepted["message"]
    assert not job.kubectl.names("rayjobs,deployments,pods,pvc", "-l", "rljob.io/job=impossible")


def test_hooks_from_the_manifest_run_in_the_pods(kubectl: Kubectl) -> None:
    kubectl.apply(example("custom-hooks.yaml", "custom-hooks", {}))
    job = Job(kubectl, "custom-hooks")
    done = job.wait_phase("Succeeded", seconds=420)
    assert done["step"] == done["totalSteps"]
