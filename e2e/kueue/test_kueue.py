"""Two jobs and quota for one, then a third that is worth more: the queue from the users' side."""

from collections.abc import Iterator

import pytest
from rljob_api.contract import names

from benchmarks.scale.cluster import Machine, machine
from e2e.cluster import binaries
from e2e.cluster.cluster import Cluster
from e2e.cluster.paths import Paths
from e2e.kueue.install import install
from e2e.kueue.world import JOB, LABEL, QUEUE, User, administer, operate
from e2e.support.wait import wait_for

pytestmark = pytest.mark.cluster
COMMIT = {"name": "0001-ab/commits/step-000002", "step": 2}
LATER = {"name": "0001-ab/commits/step-000003", "step": 3}


@pytest.fixture(scope="module")
def cluster() -> Iterator[Machine]:
    """Control plane, scheduler, KubeRay, kwok, Kueue and our operator, all of them real programs."""
    paths = Paths.from_env()
    if Cluster(paths).mode() is not None:
        pytest.fail("a cluster is up, and this test brings up its own: set RLJOB_CLUSTER_INDEX to another number")
    binaries.ensure(paths, {"kueue": binaries.KUEUE, "helm": binaries.HELM})
    with machine() as ours:
        install(ours.cluster)
        operate(ours)
        administer(ours, {"urgent": 1000})
        yield ours


def test_jobs_in_a_queue(cluster: Machine) -> None:
    first, second = User(cluster, "first"), User(cluster, "second")
    first.submit()
    first.runs(step=1)
    assert first.condition("Admitted")["message"] == f"admitted by ClusterQueue one-job through LocalQueue {QUEUE}"
    assert "admittedTime" in first.status["attempts"][0]

    # The second waits, with Kueue's reason, and holds no pod.
    second.submit()
    second.until("why it waits", lambda: "insufficient unused quota" in second.condition("Admitted")["message"])
    assert second.status["phase"] == "Queued"
    assert second.condition("Admitted")["reason"] == "WaitingForAdmission"
    assert not second.of("rayclusters")
    assert not second.of("pods")
    (waiting,) = second.of("rayjobs")
    assert waiting["spec"]["suspend"] is True

    # What Kueue wrote into the first's RayJob is Kueue's, and stays.
    (ray_job,) = first.of("rayjobs")
    group = ray_job["spec"]["rayClusterSpec"]["workerGroupSpecs"][0]["template"]["spec"]
    assert group["nodeSelector"] == LABEL
    assert ray_job["spec"].get("suspend", False) is False
    assert _writers(cluster, second, "f:suspend") == {"rljob-operator"}
    assert not _writers(cluster, first, "f:suspend"), "the field went with Kueue's write"
    assert all(pod["spec"]["nodeSelector"] == LABEL for pod in first.of("pods"))

    # Scaling goes beyond what was admitted.
    cluster.kubectl("-n", first.namespace, "scale", f"rljob/{JOB}", "--replicas=3")
    first.until("the refusal", lambda: first.condition("RolloutScaled")["reason"] == "ScalingRefused")
    assert first.condition("ClusterReady")["status"] == "True"
    assert len(first.of("pods")) == 3

    # The end of the first is the beginning of the second.
    first.succeeds()
    second.runs(step=3, lastCommit=COMMIT)
    assert second.condition("Admitted")["status"] == "True"


def test_a_job_that_is_worth_more_preempts(cluster: Machine) -> None:
    second, third = User(cluster, "second"), User(cluster, "third")
    second.report(attempt=1, step=4, lastCommit=LATER)
    second.until("its commit", lambda: second.status["lastCommit"]["step"] == LATER["step"])
    third.submit(priorityClass="urgent")
    second.until("its next attempt", lambda: second.ray_jobs() == [names.ray_job(JOB, 2)])
    ended = second.status["attempts"][0]
    assert (ended["state"], ended["reason"]) == ("Suspended", "Preempted")
    assert "Preempted to accommodate a workload" in ended["message"]
    assert ended["message"].endswith("; 1 step after step 3 not committed"), "simulated pods have no grace period"
    assert ended["committedStep"] == LATER["step"]
    assert second.status.get("failedAttempts", 0) == 0
    third.runs(step=1)
    second.until("the queue", lambda: second.status["phase"] == "Queued")
    (waiting,) = second.of("rayjobs")
    assert waiting["spec"]["suspend"] is True
    assert waiting["spec"]["entrypoint"].endswith(f"--resume-from {LATER['name']}")
    assert not second.of("pods")

    # The third's user suspends it: first it commits, then its quota is the second's.
    third.change(lifecycle={"suspend": True})
    third.until("the request", lambda: '"suspend": true' in _request(third) or '"suspend":true' in _request(third))
    assert third.of("pods")
    third.report(attempt=1, step=2, state="Suspended", exitCode=4, reason="Suspended", lastCommit=COMMIT)
    third.until("Suspended", lambda: third.status["phase"] == "Suspended")
    assert not third.of("rayjobs")
    second.runs(attempt=2, step=4, lastCommit=LATER)
    assert second.status["attempts"][1]["startStep"] == LATER["step"]
    second.succeeds(attempt=2)

    # Resumed, the third is admitted once more, from its commit.
    third.change(lifecycle={"suspend": False})
    third.runs(attempt=2, step=3)
    (ray_job,) = third.of("rayjobs")
    assert ray_job["spec"]["entrypoint"].endswith(f"--resume-from {COMMIT['name']}")
    cluster.kubectl("-n", third.namespace, "delete", "rljob", JOB, "--timeout=60s")
    wait_for("no Workload of the deleted job", lambda: not third.of("workloads"), seconds=60)


def test_a_queue_that_is_not_there_is_named(cluster: Machine) -> None:
    lost = User(cluster, "lost")
    cluster.kubectl("-n", "lost", "delete", "localqueue", QUEUE)
    lost.submit()
    lost.until("Inadmissible", lambda: lost.condition("Admitted")["reason"] == "Inadmissible")
    assert "LocalQueue team doesn't exist" in lost.condition("Admitted")["message"]
    lost.change(lifecycle={"suspend": True})
    lost.until("Suspended", lambda: lost.status["phase"] == "Suspended")
    assert not lost.of("rayjobs")
    assert not lost.of("workloads")


def _request(user: User) -> str:
    name = names.control(JOB)
    text: str = user.kubectl.get("-n", user.namespace, "configmap", name)["data"]["request.json"]
    return text


def _writers(cluster: Machine, user: User, field: str) -> set[str]:
    """Who owns a field of the spec of the user's RayJob."""
    arguments = ("-n", user.namespace, "rayjobs", names.ray_job(JOB, 1), "--show-managed-fields")
    managed = cluster.kubectl.get(*arguments)["metadata"]["managedFields"]
    return {entry["manager"] for entry in managed if field in entry["fieldsV1"].get("f:spec", {})}
