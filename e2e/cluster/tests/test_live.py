"""The cluster that is up does what an operator needs of one: `pytest -m cluster e2e/cluster`."""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator
from typing import Any

import pytest

from e2e.cluster import images
from e2e.cluster.cluster import Cluster
from e2e.cluster.kubectl import Kubectl
from e2e.cluster.paths import Paths
from e2e.cluster.run import ClusterError, wait_for
from e2e.cluster.settings import HOST_ADDRESS

pytestmark = pytest.mark.cluster

_SERVER = """
import http.server, os, pathlib
pathlib.Path("/data", os.uname().nodename).write_text("written")
print("serving as", os.getuid(), flush=True)
http.server.test(http.server.SimpleHTTPRequestHandler, port=8080, bind="0.0.0.0")
"""

# Prints what became of each attempt to leave; "reached" must not be among it.
_LEAVE = """
import socket, sys
for host, port in (("example.com", 443), ("192.0.2.1", 80), (sys.argv[1], int(sys.argv[2]))):
    try:
        socket.create_connection((host, port), timeout=5).close()
        print("reached", host)
    except OSError as error:
        print(type(error).__name__)
"""


def _pod(image: str) -> dict[str, Any]:
    """A pod as the strictest Pod Security level wants it."""
    container = {
        "name": "main",
        "image": image,
        "imagePullPolicy": "Never",
        "command": ["python3", "-c", _SERVER],
        "workingDir": "/data",
        "securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}},
        "resources": {"requests": {"cpu": "200m", "memory": "32Mi"}, "limits": {"memory": "128Mi"}},
        "readinessProbe": {"httpGet": {"path": "/", "port": 8080}, "periodSeconds": 1},
        "volumeMounts": [{"name": "data", "mountPath": "/data"}],
    }
    return {
        "securityContext": {"runAsNonRoot": True, "runAsUser": 65532, "seccompProfile": {"type": "RuntimeDefault"}},
        "terminationGracePeriodSeconds": 0,
        "containers": [container],
        "volumes": [{"name": "data", "persistentVolumeClaim": {"claimName": "data"}}],
    }


def _manifests(image: str) -> list[dict[str, Any]]:
    labels = {"app": "web"}
    claim = {"accessModes": ["ReadWriteMany"], "resources": {"requests": {"storage": "1Gi"}}}
    template = {"metadata": {"labels": labels}, "spec": _pod(image)}
    web = {"replicas": 2, "selector": {"matchLabels": labels}, "template": template}
    service = {"selector": labels, "ports": [{"port": 80, "targetPort": 8080}]}
    name = {"name": "web"}
    return [
        {"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": "data"}, "spec": claim},
        {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": name, "spec": web},
        {"apiVersion": "v1", "kind": "Service", "metadata": name, "spec": service},
    ]


@pytest.fixture(scope="module")
def kubectl() -> Kubectl:
    cluster = Cluster(Paths.from_env())
    if cluster.mode() != "full":
        pytest.skip("no cluster of e2e.cluster is up")
    return cluster.kubectl()


@pytest.fixture(scope="module")
def namespace(kubectl: Kubectl) -> Iterator[str]:
    """A namespace of the strictest level, with two replicas of a web server behind a Service."""
    image = images.debootstrap_base()
    images.load(image)
    name = f"live-{uuid.uuid4().hex[:6]}"
    labels = {"pod-security.kubernetes.io/enforce": "restricted"}
    kubectl.apply([{"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels}}])
    items = {"apiVersion": "v1", "kind": "List", "items": _manifests(image)}
    kubectl("apply", "-n", name, "-f", "-", stdin=json.dumps(items))
    kubectl("-n", name, "rollout", "status", "deployment/web", "--timeout=90s", timeout=120)
    yield name
    kubectl("delete", "namespace", name, "--timeout=60s", timeout=90)


def _exec(kubectl: Kubectl, namespace: str, *command: str) -> str:
    return kubectl("-n", namespace, "exec", "deployment/web", "--", *command)


def test_a_service_is_reached_by_name(kubectl: Kubectl, namespace: str) -> None:
    script = "import urllib.request as r\nfor _ in range(20): print(r.urlopen('http://web/', timeout=5).status)"

    def answers() -> bool:
        try:
            return _exec(kubectl, namespace, "python3", "-c", script).split() == ["200"] * 20
        except ClusterError:  # a Service's rules follow its pods' readiness by a moment
            return False

    wait_for("the Service web", answers, timeout=20)


def test_logs_and_exec(kubectl: Kubectl, namespace: str) -> None:
    assert "serving as 65532" in kubectl("-n", namespace, "logs", "deployment/web")
    assert _exec(kubectl, namespace, "id", "-u").strip() == "65532"


def test_a_shared_volume_is_written_by_all(kubectl: Kubectl, namespace: str) -> None:
    pods = {item["metadata"]["name"] for item in kubectl.get("-n", namespace, "pods")["items"]}
    assert len(pods) == 2
    assert set(_exec(kubectl, namespace, "ls", "/data").split()) == pods


def test_nothing_leaves_the_cluster(kubectl: Kubectl, namespace: str) -> None:
    out = _exec(kubectl, namespace, "python3", "-c", _LEAVE, HOST_ADDRESS, "22")
    assert out.split()[0] == "gaierror"
    assert len(out.splitlines()) == 3
    assert "reached" not in out


def test_a_service_account_may_do_what_it_was_granted_and_no_more(kubectl: Kubectl, namespace: str) -> None:
    account = f"--as=system:serviceaccount:{namespace}:default"
    with pytest.raises(ClusterError, match="no"):
        kubectl("auth", "can-i", "list", "pods", account, "-n", namespace)
    with pytest.raises(ClusterError, match="forbidden"):
        kubectl("get", "pods", account, "-n", namespace)


def test_pod_security_is_enforced(kubectl: Kubectl, namespace: str) -> None:
    with pytest.raises(ClusterError, match="violates PodSecurity"):
        kubectl("-n", namespace, "run", "root", "--image=x", "--privileged")


def test_kuberay_s_operator_serves_its_kinds(kubectl: Kubectl) -> None:
    assert kubectl.get("rayjobs.ray.io", "-A")["items"] is not None
    status = kubectl.get("-n", "kuberay-system", "deployment", "kuberay-operator")["status"]
    assert status["availableReplicas"] == 1
