"""NetworkPolicies, enforced: a job trains under them, and its pods, its retriever and Ray's dashboard are reached by
nobody that does not belong."""

import json
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import pytest

from e2e.cluster.cluster import Cluster
from e2e.cluster.paths import Paths
from e2e.support.jobs import Job, example
from e2e.support.kubectl import Kubectl
from e2e.support.probe import Probe, reaches
from e2e.support.wait import wait_for
from e2e.tests.conftest import IMAGES
from e2e.tests.test_rljob_faults import SHORT

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(2700), pytest.mark.usefixtures("installed_operator")]

MONITORING = "monitoring"
"""The namespace whose pods may scrape, unless the chart is told of another."""
DENY_ALL = {
    "apiVersion": "networking.k8s.io/v1",
    "kind": "NetworkPolicy",
    "metadata": {"name": "deny-all"},
    "spec": {"podSelector": {}, "policyTypes": ["Ingress"]},
}


@contextmanager
def _namespace(kubeconfig: str, name: str) -> Iterator[Kubectl]:
    """kubectl in a namespace, which is made, and taken away, where it is not there."""
    kubectl = Kubectl(kubeconfig, name)
    there = kubectl.names("namespace", name)
    if not there:
        kubectl("create", "namespace", name)
    try:
        yield kubectl
    finally:
        if there:
            kubectl("delete", "pod", "probe", "--ignore-not-found", "--wait=false")
        else:
            kubectl("delete", "namespace", name, "--wait=false")


def test_a_job_trains_and_only_what_belongs_reaches_its_pods(kubectl: Kubectl, kubeconfig: str) -> None:
    kubectl.apply(example("quickstart.yaml", "guarded", SHORT | {"rollout": {"numRollout": 150}}))
    job = Job(kubectl, "guarded")
    with ExitStack() as stack:
        elsewhere = stack.enter_context(_namespace(kubeconfig, f"e2e-{uuid.uuid4().hex[:8]}"))
        scrapers = stack.enter_context(_namespace(kubeconfig, MONITORING))
        beside, away, scraper = (Probe(its, IMAGES["trainer"]) for its in (kubectl, elsewhere, scrapers))
        for probe in (beside, away, scraper):
            probe.start()
        elsewhere.apply(json.dumps(DENY_ALL))
        if not _enforced(beside, away) and not _ours(kubeconfig):
            pytest.skip("this cluster enforces no NetworkPolicies")

        job.wait_step(22, stage="RL", seconds=300)
        targets = _targets(job)
        # What listens, as the job's own pods see it: the rest of the test means nothing without.
        for group in ("head", "trainer", "rollout"):
            (pod,) = job.pods(group)
            assert reaches(kubectl, pod["metadata"]["name"], targets) == targets.keys(), f"from the {group} pod"
        assert beside.reaches(targets) == set()
        assert away.reaches(targets) == set()
        scraped = {"head metrics", "trainer metrics", "rollout metrics", "retriever", "retriever Service"}
        assert scraper.reaches(targets) == scraped

        before = job.status()["step"]
        job.wait_step(before + 5, stage="RL", seconds=120)
        assert job.status()["attempt"] == 1


def _enforced(source: Probe, denied: Probe) -> bool:
    """Whether a policy that lets nobody in keeps a connection out, once it has had time to be taken in."""
    try:
        wait_for("the policy", lambda: not source.reaches({"denied": denied.address}), seconds=15)
    except TimeoutError:
        return False
    return True


def _ours(kubeconfig: str) -> bool:
    """Whether this is the cluster of e2e.cluster, which enforces policies: there is no excuse."""
    return kubeconfig == str(Cluster(Paths.from_env()).paths.admin_kubeconfig)


def _targets(job: Job) -> dict[str, str]:
    spec = job.kubectl.get("rljob", job.name)["spec"]
    metrics = spec.get("tracking", {}).get("metricsPort", 9090)
    search = spec["retriever"].get("port", 8000)
    address = {group: job.pods(group)[0]["status"]["podIP"] for group in ("head", "trainer", "rollout", "retriever")}
    cluster = job.kubectl.get("rayjob", f"{job.name}-1")["status"]["rayClusterName"]
    domain = f"{job.kubectl.namespace}.svc"
    return {
        "Ray's dashboard": f"{address['head']}:8265",
        "Ray's dashboard's Service": f"{cluster}-head-svc.{domain}:8265",
        "Ray's GCS": f"{address['head']}:6379",
        **{f"{group} metrics": f"{address[group]}:{metrics}" for group in ("head", "trainer", "rollout")},
        "retriever": f"{address['retriever']}:{search}",
        "retriever Service": f"{job.name}-retriever.{domain}:{search}",
    }
