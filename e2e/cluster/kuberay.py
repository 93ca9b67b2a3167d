"""KubeRay: its CRDs and its operator, in a pod made of nothing but the binary."""

from __future__ import annotations

from functools import partial
from typing import Any

from . import node_images
from .binaries import KUBERAY, KUBERAY_VERSION, kuberay_manifests, program
from .containerd import Containerd
from .kubectl import Kubectl
from .paths import Paths
from .processes import Daemons
from .run import ClusterError, tail

NAMESPACE = "kuberay-system"
OPERATOR = "kuberay-operator"


def image() -> str:
    """The operator's image."""
    return f"localhost/{OPERATOR}:{KUBERAY_VERSION}-{KUBERAY.key(OPERATOR)}"


def manifests() -> list[dict[str, Any]]:
    """Namespace, account, bindings, Deployment. The roles are KubeRay's own files."""
    group = "rbac.authorization.k8s.io"
    election = f"{OPERATOR}-leader-election"
    subjects = [{"kind": "ServiceAccount", "name": OPERATOR, "namespace": NAMESPACE}]
    place = {"namespace": NAMESPACE}
    return [
        {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}},
        {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": OPERATOR, **place}},
        {
            "apiVersion": f"{group}/v1",
            "kind": "ClusterRoleBinding",
            "metadata": {"name": OPERATOR},
            "roleRef": {"apiGroup": group, "kind": "ClusterRole", "name": OPERATOR},
            "subjects": subjects,
        },
        {
            "apiVersion": f"{group}/v1",
            "kind": "RoleBinding",
            "metadata": {"name": election, **place},
            "roleRef": {"apiGroup": group, "kind": "Role", "name": election},
            "subjects": subjects,
        },
        {
            "apiVersion": "apps/v1",
            "kind": "Deployment",
            "metadata": {"name": OPERATOR, **place},
            "spec": _spec(),
        },
    ]


def _spec() -> dict[str, Any]:
    labels = {"app.kubernetes.io/name": "kuberay", "app.kubernetes.io/component": OPERATOR}
    container = {
        "name": OPERATOR,
        "image": image(),
        "imagePullPolicy": "Never",
        "args": ["--enable-leader-election=true"],
        "ports": [{"name": "http", "containerPort": 8080}],
        "readinessProbe": {"httpGet": {"path": "/metrics", "port": "http"}, "periodSeconds": 1},
        "livenessProbe": {"httpGet": {"path": "/metrics", "port": "http"}, "initialDelaySeconds": 30},
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "capabilities": {"drop": ["ALL"]},
            "readOnlyRootFilesystem": True,
        },
        "resources": {"requests": {"cpu": "50m", "memory": "64Mi"}, "limits": {"memory": "512Mi"}},
    }
    pod = {
        "serviceAccountName": OPERATOR,
        "terminationGracePeriodSeconds": 5,
        "securityContext": {"runAsNonRoot": True, "runAsUser": 65532},
        "containers": [container],
    }
    return {
        "replicas": 1,
        "strategy": {"type": "Recreate"},
        "selector": {"matchLabels": labels},
        "template": {"metadata": {"labels": labels}, "spec": pod},
    }


def apply_crds(paths: Paths, kubectl: Kubectl) -> None:
    """Apply the CRDs. Server-side: one of them is larger than an annotation may be."""
    kubectl("apply", "--server-side", "--force-conflicts", "-f", kuberay_manifests(paths) / "crds", timeout=120)


def install(paths: Paths, daemons: Daemons, containerd: Containerd, kubectl: Kubectl) -> None:
    """Install KubeRay's operator, once the CRDs are served, and wait until it is ready."""
    for kind in ("rayjobs", "rayclusters", "rayservices"):
        path = f"/apis/ray.io/v1/{kind}"
        daemons.wait_ready(path, partial(kubectl.answers, path))
    binary = program(paths, OPERATOR)
    node_images.load_scratch(paths, containerd, image(), {"/manager": binary}, {"Entrypoint": ["/manager"]})
    rbac = kuberay_manifests(paths) / "rbac"
    own = manifests()
    kubectl.apply(own[:1])
    for file in ("role.yaml", "leader_election_role.yaml"):
        kubectl("apply", "--server-side", "--force-conflicts", "-n", NAMESPACE, "-f", rbac / file)
    kubectl.apply(own[1:])
    try:
        daemons.wait_ready(OPERATOR, lambda: _available(kubectl))
    except ClusterError as error:
        raise ClusterError(f"{error}\n{_report(kubectl)}") from error


def _report(kubectl: Kubectl) -> str:
    """What the cluster says about the operator, as far as it still says anything."""
    words: list[tuple[str, ...]] = [
        ("get", "pods", "-o", "wide"),
        ("get", "events", "--sort-by=.metadata.creationTimestamp"),
        ("logs", f"deployment/{OPERATOR}", "--tail=20", "--pod-running-timeout=1s"),
    ]
    texts: list[str] = []
    for command in words:
        try:
            texts.append(tail(kubectl("-n", NAMESPACE, "--request-timeout=5s", *command), 12))
        except ClusterError as error:
            texts.append(tail(str(error), 2))
    return "\n".join(texts)


def _available(kubectl: Kubectl) -> bool:
    status = kubectl.get("-n", NAMESPACE, "deployment", OPERATOR).get("status", {})
    return bool(status.get("availableReplicas"))
