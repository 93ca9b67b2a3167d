"""Who reaches whom: every pair of pods around two jobs, under the policies that the operator renders for both."""

import itertools

import pytest
from rljob_api.contract import labels
from rljob_api.v1alpha1.job import RLJob
from rljob_operator.resources.context import Context
from rljob_operator.resources.network import policies
from rljob_operator.settings import Settings

from tests.conftest import NAMESPACE, UID, job_manifest
from tests.reachable import Pod, reachable

DASHBOARD, CLIENT, GCS, METRICS, SEARCH, WORKER = 8265, 10001, 6379, 9102, 8000, 31337
KUBERAY = {"app.kubernetes.io/component": "kuberay-operator"}


def rendered(name="demo", *, retriever=True, metrics_port=METRICS, **settings):
    manifest = job_manifest(name, tracking={"metricsPort": metrics_port})
    if not retriever:
        del manifest["spec"]["retriever"]
        manifest["spec"]["rollout"]["generate"] = {"type": "single_turn"}
    job = RLJob.model_validate(manifest)
    return policies(Context(job=job, namespace=NAMESPACE, uid=UID, settings=Settings(**settings)))


def of_job(name, namespace=NAMESPACE):
    roles = ("head", "trainer", "rollout", "retriever")
    return {f"{name}-{role}": Pod(namespace, labels.pod(name, role, 1)) for role in roles}


PODS = {
    **of_job("demo"),
    **{f"other-{role}": pod for role, pod in of_job("other").items()},
    **{f"elsewhere-{role}": pod for role, pod in of_job("demo", "elsewhere").items()},
    "stranger": Pod(NAMESPACE, {"app": "notebook"}),
    "stranger-elsewhere": Pod("elsewhere", {"app": "notebook"}),
    "operator": Pod("rljob-system", {"app.kubernetes.io/name": "rljob-operator"}),
    "kuberay": Pod("kuberay-system", KUBERAY),
    "prometheus": Pod("monitoring", {"app": "prometheus"}),
}
RAY = ("demo-head", "demo-trainer", "demo-rollout")


def sources(policy_set, target, port):
    return {name for name, pod in PODS.items() if reachable(policy_set, pod, PODS[target], port)}


ALLOWED = [
    *((target, DASHBOARD, {*RAY, "kuberay"}) for target in RAY),
    *((target, METRICS, {*RAY, "prometheus"}) for target in RAY),
    *((target, port, {*RAY}) for target, port in itertools.product(RAY, (CLIENT, GCS, WORKER, SEARCH))),
    ("demo-retriever", SEARCH, {*RAY, "prometheus"}),
    *(("demo-retriever", port, set()) for port in (DASHBOARD, CLIENT, METRICS, WORKER)),
]


@pytest.mark.parametrize(
    ("target", "port", "allowed"), ALLOWED, ids=[f"{target}:{port}" for target, port, _ in ALLOWED]
)
def test_only_what_belongs_gets_in(target, port, allowed):
    assert sources([*rendered("demo"), *rendered("other")], target, port) == allowed


def test_with_kuberays_namespace_named_its_labels_elsewhere_are_no_key():
    impostor = Pod("elsewhere", KUBERAY)
    named = rendered(kuberay_namespaces=("kuberay-system",))
    assert reachable(rendered(), impostor, PODS["demo-head"], DASHBOARD)
    assert not reachable(named, impostor, PODS["demo-head"], DASHBOARD)
    assert sources(named, "demo-head", DASHBOARD) == {*RAY, "kuberay"}


def test_the_namespace_of_prometheus_is_a_setting():
    policy_set = rendered(metrics_namespaces=("elsewhere",))
    assert "stranger-elsewhere" in sources(policy_set, "demo-head", METRICS)
    assert "prometheus" not in sources(policy_set, "demo-head", METRICS)
    assert sources(rendered(metrics_namespaces=()), "demo-retriever", SEARCH) == {*RAY}


def test_without_metrics_no_port_is_open_for_them():
    assert sources(rendered(metrics_port=0), "demo-head", METRICS) == {*RAY}


def test_a_pod_of_the_job_in_any_other_role_is_closed():
    prepare = Pod(NAMESPACE, labels.common("demo") | {labels.ROLE: "prepare"})
    assert not [name for name, pod in PODS.items() if name not in RAY and reachable(rendered(), pod, prepare, WORKER)]


def test_switched_off_nothing_is_rendered():
    assert rendered(network_policies=False) == []


def test_a_job_without_a_retriever_has_one_policy():
    assert [policy["metadata"]["name"] for policy in rendered(retriever=False)] == ["demo-pods"]


# The function that the above relies on, against the examples of the Kubernetes documentation.


def policy(pods, ingress, types=("Ingress",)):
    spec = {"podSelector": pods, "policyTypes": list(types), "ingress": ingress}
    return {"metadata": {"namespace": "a"}, "spec": spec}


HERE, THERE = Pod("a", {"role": "db"}), Pod("b", {"role": "db"}, {"project": "x"})


@pytest.mark.parametrize(
    ("ingress", "source", "open_"),
    [
        ([], HERE, False),
        ([{}], THERE, True),
        ([{"from": [{"podSelector": {}}]}], HERE, True),
        ([{"from": [{"podSelector": {}}]}], THERE, False),
        ([{"from": [{"namespaceSelector": {}}]}], THERE, True),
        ([{"from": [{"namespaceSelector": {"matchLabels": {"project": "x"}}}]}], THERE, True),
        ([{"from": [{"namespaceSelector": {"matchLabels": {"project": "y"}}}]}], THERE, False),
        ([{"from": [{"namespaceSelector": {}, "podSelector": {"matchLabels": {"role": "web"}}}]}], THERE, False),
        ([{"from": [{"namespaceSelector": {}}, {"podSelector": {"matchLabels": {"role": "web"}}}]}], THERE, True),
        ([{"ports": [{"port": 80}]}], THERE, False),
        ([{"ports": [{"port": 5000, "endPort": 6000}]}], THERE, True),
        ([{"ports": [{"port": 5432, "protocol": "UDP"}]}], THERE, False),
    ],
)
def test_rules_mean_what_kubernetes_says(ingress, source, open_):
    assert reachable([policy({}, ingress)], source, HERE, 5432) is open_


def test_what_no_policy_selects_is_open():
    assert reachable([policy({"matchLabels": {"role": "web"}}, [])], THERE, HERE, 1)
    assert reachable([policy({}, [])], HERE, THERE, 1), "policies hold in their own namespace"
    assert reachable([policy({}, [], types=["Egress"])], THERE, HERE, 1)
