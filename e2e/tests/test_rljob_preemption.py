"""Kueue takes a job's pods away while it trains: it commits in their grace period, and goes on from there once admitted
again. `e2e/kueue` has the queue itself, with nodes that are simulated; here driver and ranks are real.
"""

import json
from collections.abc import Iterator

import pytest

from e2e.cluster import binaries
from e2e.cluster.cluster import Cluster
from e2e.cluster.paths import Paths
from e2e.kueue.install import install
from e2e.kueue.world import API
from e2e.support.chaos import strike
from e2e.support.jobs import Job, example, merge
from e2e.support.kubectl import Kubectl
from e2e.support.wait import wait_for
from e2e.tests.conftest import RELEASE, ROOT, SYSTEM, helm
from e2e.tests.test_rljob_chaos import SHORT, TOTAL

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.timeout(3600),
    pytest.mark.usefixtures("installed_operator"),
    pytest.mark.nightly,
    pytest.mark.serial,
]
QUEUE, CLUSTER_QUEUE, FLAVOR = "team", "preempted", "any-node"


def _upgrade(kubeconfig: str, kueue: bool) -> None:
    helm(
        kubeconfig, "upgrade", RELEASE, str(ROOT / "charts/rljob"), "--namespace", SYSTEM, "--reuse-values",
        "--set", f"kueue.enabled={str(kueue).lower()}", "--wait", "--timeout", "120s",
    )  # fmt: skip


@pytest.fixture
def queues(kubeconfig: str) -> Iterator[None]:
    """Kueue beside our own cluster, an operator that knows it, and a ClusterQueue; taken away again. Before `kubectl`
    among a test's arguments: its namespace goes first."""
    cluster = Cluster(Paths.from_env())
    if cluster.mode() != "full" or kubeconfig != str(cluster.paths.admin_kubeconfig):
        pytest.skip("this is no cluster of ours to install Kueue on")
    binaries.ensure(cluster.paths, {"kueue": binaries.KUEUE})
    admin = cluster.kubectl()
    install(cluster)
    _upgrade(kubeconfig, kueue=True)
    quota = [{"name": "cpu", "nominalQuota": "100"}, {"name": "memory", "nominalQuota": "1Ti"}]
    groups = [{"coveredResources": ["cpu", "memory"], "flavors": [{"name": FLAVOR, "resources": quota}]}]
    spec = {"namespaceSelector": {}, "resourceGroups": groups}
    admin.apply(
        [
            {"apiVersion": API, "kind": "ResourceFlavor", "metadata": {"name": FLAVOR}},
            {"apiVersion": API, "kind": "ClusterQueue", "metadata": {"name": CLUSTER_QUEUE}, "spec": spec},
        ]
    )
    yield
    admin("delete", "clusterqueue", CLUSTER_QUEUE, "--timeout=60s", timeout=70)
    admin("delete", "resourceflavor", "--all", "--timeout=60s", timeout=70)
    for kind in ("mutatingwebhookconfiguration", "validatingwebhookconfiguration"):
        names = [name for name in admin("get", kind, "-o", "name").split() if "/kueue-" in name]
        admin("delete", *names)
    definitions = admin("get", "crd", "-o", "name").split()
    admin("delete", *(name for name in definitions if name.endswith("kueue.x-k8s.io")), "--timeout=60s", timeout=70)
    cluster.daemons.stop(["kueue"])
    _upgrade(kubeconfig, kueue=False)


def test_an_evicted_job_commits_in_its_grace_period(queues: None, kubectl: Kubectl) -> None:
    queue = {
        "apiVersion": API,
        "kind": "LocalQueue",
        "metadata": {"name": QUEUE},
        "spec": {"clusterQueue": CLUSTER_QUEUE},
    }
    kubectl.apply(json.dumps(queue))
    lifecycle = {"lifecycle": {"queue": {"name": QUEUE}, "terminationGracePeriodSeconds": 60}}
    kubectl.apply(example("quickstart.yaml", "evicted", merge(SHORT, lifecycle)))
    job = Job(kubectl, "evicted")
    job.wait_step(22, stage="RL", seconds=300)
    assert job.condition("Admitted")["status"] == "True"

    def stop(policy: str) -> None:
        body = json.dumps({"spec": {"stopPolicy": policy}})
        kubectl("patch", "clusterqueue", CLUSTER_QUEUE, "--type=merge", "-p", body)

    def evict() -> None:
        stop("HoldAndDrain")
        wait_for("the attempt's end", lambda: job.status()["attempts"][0]["state"] == "Suspended", seconds=120)
        wait_for("its pods gone", lambda: not job.pods("head") and not job.pods("trainer"), seconds=120)
        wait_for("its place in the queue", lambda: job.status()["phase"] == "Queued", seconds=60)
        stop("None")

    evicted = strike(job, "evicted by Kueue, admitted again", evict, ends_attempt=True)
    assert (evicted.attempts, evicted.lost_steps) == (1, 0)
    first, second = job.status()["attempts"]
    assert first["reason"] == "Preempted"
    assert second["startStep"] == first["committedStep"] == first["endStep"] > 20

    done = job.wait_phase("Succeeded", seconds=420)
    assert done["step"] == done["totalSteps"] == TOTAL
    assert (done["attempt"], done["failedAttempts"]) == (2, 0)
