"""The slow half of the chaos: `make chaos`, `make test-nightly`.

What needs the machine that the node is (its processes, its kubelet, a disk of its own) is skipped on other clusters.
"""

from collections.abc import Iterator

import pytest

from e2e.cluster.cluster import Cluster
from e2e.cluster.paths import Paths
from e2e.support.chaos import evict, strike
from e2e.support.jobs import Job, example, merge
from e2e.support.kubectl import Kubectl
from e2e.support.machine import Machine, full
from e2e.support.retriever_pod import RetrieverPod
from e2e.support.wait import wait_for
from e2e.tests.conftest import IMAGES
from e2e.tests.test_rljob_chaos import SAVE_INTERVAL, SHORT, TOTAL

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.timeout(7200),
    pytest.mark.usefixtures("installed_operator"),
    pytest.mark.nightly,
    pytest.mark.serial,
]


LONG = merge(SHORT, {"rollout": {"batchSize": 48, "numRollout": 300}})
"""Of a step a second or more on any machine: what takes minutes must not outlast the job."""
LONG_TOTAL = 320


@pytest.fixture
def machine(kubeconfig: str) -> Iterator[Machine]:
    """The machine of our own cluster. Before `kubectl` among a test's arguments: what it made is needed until then."""
    cluster = Cluster(Paths.from_env())
    if cluster.mode() != "full" or kubeconfig != str(cluster.paths.admin_kubeconfig):
        pytest.skip("the node is no machine of ours")
    yield (found := Machine(cluster))
    found.close()


def test_the_main_process_of_each_container_is_killed(machine: Machine, kubectl: Kubectl, system: Kubectl) -> None:
    kubectl.apply(example("quickstart.yaml", "processes", LONG))
    job = Job(kubectl, "processes")
    job.wait_step(22, stage="RL", seconds=300)
    for group in ("rollout", "retriever"):
        killed = strike(job, f"SIGKILL of the {group} container", lambda group=group: machine.kill(job.pods(group)))
        assert killed.attempts == 0
    pods = system.items("pods", "-l", "app.kubernetes.io/name=rljob-operator")
    killed = strike(job, "SIGKILL of the operator", lambda: machine.kill(pods))
    assert killed.attempts == 0

    def silent() -> None:
        machine.freeze(job.pods("retriever"))
        condition = wait_for(
            "it told", lambda: (it := job.condition("RetrieverReady"))["status"] == "False" and it, seconds=90
        )
        assert condition["reason"] == "RetrieverSilent"
        wait_for("the kubelet's restart", lambda: job.condition("RetrieverReady")["status"] == "True", seconds=240)

    frozen = strike(job, "SIGSTOP of the retriever, until its probe has it restarted", silent)
    assert frozen.attempts == 0
    for group in ("head", "trainer"):
        killed = strike(
            job,
            f"SIGKILL of the {group} container",
            lambda group=group: machine.kill(job.pods(group)),
            ends_attempt=True,
        )
        assert killed.attempts == 1
        assert killed.lost_steps <= SAVE_INTERVAL

    done = job.wait_phase("Succeeded", seconds=1200)
    assert done["step"] == done["totalSteps"] == LONG_TOTAL
    assert done["attempt"] == 3


def test_a_node_that_is_not_ready_for_a_while_and_then_for_longer(machine: Machine, kubectl: Kubectl) -> None:
    leaves = {"key": "node.kubernetes.io/unreachable", "operator": "Exists", "effect": "NoExecute"}
    pod = {"tolerations": [leaves | {"tolerationSeconds": 30}]}
    spec = {"trainer": {"pod": pod, "headPod": pod}, "rollout": {"pod": pod}, "retriever": {"pod": pod}}
    kubectl.apply(example("quickstart.yaml", "unready", merge(LONG, spec)))
    job = Job(kubectl, "unready")
    job.wait_step(22, stage="RL", seconds=300)

    def for_a_while() -> None:
        with machine.without_kubelet():
            wait_for("the node not ready", lambda: not machine.node_ready(), seconds=120)
        wait_for("the node ready", machine.node_ready, seconds=60)

    def until_evicted() -> None:
        with machine.without_kubelet():
            wait_for(
                "the pods evicted",
                lambda: all("deletionTimestamp" in pod["metadata"] for pod in job.pods("head")),
                seconds=180,
            )
        wait_for("the node ready", machine.node_ready, seconds=60)

    short = strike(job, "node not ready, pods not evicted", for_a_while)
    assert short.attempts == 0
    long = strike(job, "node not ready until its pods are evicted", until_evicted, ends_attempt=True)
    assert long.attempts == 1
    assert long.lost_steps <= SAVE_INTERVAL
    assert job.status()["attempts"][0]["reason"] == "NodeLost"

    done = job.wait_phase("Succeeded", seconds=1200)
    assert done["step"] == done["totalSteps"] == LONG_TOTAL
    assert done["attempt"] == 2


def test_a_trainer_pod_that_is_drained_costs_no_step(kubectl: Kubectl) -> None:
    kubectl.apply(
        example("quickstart.yaml", "drained", merge(SHORT, {"lifecycle": {"terminationGracePeriodSeconds": 60}}))
    )
    job = Job(kubectl, "drained")
    job.wait_step(22, stage="RL", seconds=300)
    (pod,) = job.pods("trainer")
    name = pod["metadata"]["name"]
    drained = strike(job, "trainer pod evicted through the API", lambda: evict(kubectl, name), ends_attempt=True)
    assert (drained.attempts, drained.lost_steps) == (1, 0)
    first = job.status()["attempts"][0]
    assert (first["state"], first["reason"]) == ("Suspended", "Evicted")
    assert name in first["message"]

    done = job.wait_phase("Succeeded", seconds=420)
    assert done["step"] == done["totalSteps"] == TOTAL
    assert (done["attempt"], done["failedAttempts"]) == (2, 0)


def test_a_full_volume_fails_the_job_by_name_and_spares_the_commits(machine: Machine, kubectl: Kubectl) -> None:
    folder = machine.small_volume(kubectl, "small", mebibytes=96)
    limits = {"storage": {"claimName": "small"}, "lifecycle": {"backoffLimit": 1}}
    kubectl.apply(example("quickstart.yaml", "full", merge(SHORT, limits)))
    job = Job(kubectl, "full")
    job.wait_step(22, stage="RL", seconds=300)
    with full(folder):
        failed = job.wait_phase("Failed", seconds=400)
        assert [attempt["reason"] for attempt in failed["attempts"]] == ["StorageFull"] * 2
        assert job.condition("Failed")["reason"] == "BackoffLimitExceeded"
        first, second = failed["attempts"]
        assert first["endStep"] - first["committedStep"] <= SAVE_INTERVAL
        assert second["startStep"] == first["committedStep"]

    kubectl("patch", "rljob", "full", "--type=merge", "-p", '{"spec":{"lifecycle":{"backoffLimit":3}}}')
    wait_for("the job taken up again", lambda: job.condition("Failed")["status"] == "False", seconds=60)
    done = job.wait_phase("Succeeded", seconds=420)
    assert done["step"] == done["totalSteps"] == TOTAL
    assert done["attempts"][-1]["startStep"] == first["committedStep"], "no commit was lost"


def test_a_slow_and_a_silent_retriever(kubectl: Kubectl) -> None:
    retriever = RetrieverPod(kubectl, "stand-in", IMAGES["trainer"])
    retriever.start()
    search = {"maxTurns": 3, "topk": 3, "url": retriever.url, "timeoutSeconds": 4}
    spec = {"retriever": None, "rollout": {"generate": {"type": "search", "search": search}}}
    kubectl.apply(example("quickstart.yaml", "unanswered", merge(SHORT, spec)))
    job = Job(kubectl, "unanswered")
    job.wait_step(22, stage="RL", seconds=300)
    assert retriever.failed_samples(job) == 0

    strike(job, "a retriever that takes 2 s, half of its limit", lambda: retriever.delay(2))
    assert retriever.failed_samples(job) == 0, "late is not lost"
    strike(job, "a retriever that never answers", lambda: retriever.delay(3600))
    assert retriever.failed_samples(job) > 0, "told, and not waited for"
    strike(job, "the retriever answers again", lambda: retriever.delay(0))
    lost = retriever.failed_samples(job)
    step = job.status()["step"]
    job.wait_step(step + 5, seconds=120)
    assert retriever.failed_samples(job) == lost

    done = job.wait_phase("Succeeded", seconds=420)
    assert done["step"] == done["totalSteps"] == TOTAL
    assert done["attempt"] == 1
