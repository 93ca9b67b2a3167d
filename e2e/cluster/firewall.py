"""kube-router, of which the firewall alone runs: what NetworkPolicies do not allow is refused, as on a real network."""

from __future__ import annotations

from typing import Any

from . import pki
from .binaries import program
from .kubectl import Kubectl
from .netns import http_ok
from .paths import Paths
from .processes import Daemons
from .rbac import granted
from .settings import NODE_NAME, SERVICE_CIDR

_USER = "system:kube-router"
_HEALTH_PORT = 20244


def grants() -> list[dict[str, Any]]:
    """Read access to what policies select, and to what its other parts would need: it waits for all of its caches."""
    return granted(
        "kube-router",
        _USER,
        ["get", "list", "watch"],
        {
            "": ["namespaces", "pods", "nodes", "services", "endpoints"],
            "networking.k8s.io": ["networkpolicies"],
            "discovery.k8s.io": ["endpointslices"],
        },
    )


def start(paths: Paths, daemons: Daemons, kubectl: Kubectl) -> None:
    """Start it and wait until its rules are in place."""
    kubectl.apply(grants())
    daemons.start(
        "kube-router",
        [
            program(paths, "kube-router"),
            f"--kubeconfig={pki.kubeconfig(paths, 'kube-router')}",
            f"--hostname-override={NODE_NAME}",
            f"--service-cluster-ip-range={SERVICE_CIDR}",
            f"--health-port={_HEALTH_PORT}",
            "--run-firewall=true",
            "--run-router=false",
            "--run-service-proxy=false",
        ],
    )
    daemons.wait_ready("kube-router", lambda: http_ok(paths, f"http://127.0.0.1:{_HEALTH_PORT}/healthz"))
