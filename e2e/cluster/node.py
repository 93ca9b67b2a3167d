"""The node: kubelet and kube-proxy over containerd."""

from __future__ import annotations

import json
from typing import Any

from . import pki
from .binaries import program
from .kubectl import Kubectl
from .netns import http_ok
from .paths import Paths
from .processes import Daemons
from .run import write
from .settings import CLUSTER_DOMAIN, NAME, NODE_ADDRESS, NODE_NAME, POD_CIDR

_PROXY_HEALTH = "127.0.0.1:10256"


def render_kubelet(paths: Paths) -> dict[str, Any]:
    """KubeletConfiguration: authenticated and authorised as on a real node, tolerant of what a sandbox is."""
    return {
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        "containerRuntimeEndpoint": f"unix://{paths.containerd_socket}",
        "address": NODE_ADDRESS,
        "authentication": {
            "anonymous": {"enabled": False},
            "webhook": {"enabled": True},
            "x509": {"clientCAFile": str(paths.pki / "ca.crt")},
        },
        "authorization": {"mode": "Webhook"},
        "tlsCertFile": str(paths.pki / "kubelet-server.crt"),
        "tlsPrivateKeyFile": str(paths.pki / "kubelet-server.key"),
        "clusterDNS": [NODE_ADDRESS],
        "clusterDomain": CLUSTER_DOMAIN,
        "resolvConf": str(paths.config / "resolv.conf"),
        "cgroupDriver": "cgroupfs",
        "cgroupRoot": f"/{NAME}",
        "failCgroupV1": False,
        "failSwapOn": False,
        "oomScoreAdj": 0,  # lowering it takes CAP_SYS_RESOURCE
        "maxPods": 60,
        "podLogsDir": str(paths.state / "pod-logs"),
        "nodeStatusUpdateFrequency": "5s",
        "serializeImagePulls": True,
        # No registry can be reached: an image that was collected would be gone for good.
        "imageGCHighThresholdPercent": 100,
        "imageGCLowThresholdPercent": 99,
        "evictionHard": {"memory.available": "100Mi", "nodefs.available": "1%", "imagefs.available": "1%"},
        "logging": {"verbosity": 1},
        "enableProfilingHandler": False,
    }


def render_kube_proxy(paths: Paths) -> dict[str, Any]:
    """KubeProxyConfiguration. The conntrack limits belong to the machine and are left alone."""
    return {
        "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
        "kind": "KubeProxyConfiguration",
        "mode": "nftables",
        "clientConnection": {"kubeconfig": str(paths.config / "kube-proxy.kubeconfig")},
        "nftables": {"minSyncPeriod": "100ms", "syncPeriod": "30s"},  # a second by default: long for a test
        "hostnameOverride": NODE_NAME,
        "clusterCIDR": POD_CIDR,
        "conntrack": {"maxPerCore": 0, "min": 0, "tcpEstablishedTimeout": "0s", "tcpCloseWaitTimeout": "0s"},
        "oomScoreAdj": 0,
        "healthzBindAddress": _PROXY_HEALTH,
        "metricsBindAddress": "127.0.0.1:10249",
    }


def grants() -> list[dict[str, Any]]:
    """What kubeadm grants and the apiserver does not by itself: logs and exec go from the apiserver to the kubelet."""
    return [
        {
            "apiVersion": "rbac.authorization.k8s.io/v1",
            "kind": "ClusterRoleBinding",
            "metadata": {"name": f"{NAME}:apiserver-to-kubelet"},
            "roleRef": {
                "apiGroup": "rbac.authorization.k8s.io",
                "kind": "ClusterRole",
                "name": "system:kubelet-api-admin",
            },
            "subjects": [
                {
                    "apiGroup": "rbac.authorization.k8s.io",
                    "kind": "User",
                    "name": "kube-apiserver-kubelet-client",
                }
            ],
        }
    ]


def start(paths: Paths, daemons: Daemons, kubectl: Kubectl) -> None:
    """Start the node's daemons and wait until the node is Ready."""
    kubectl.apply(grants())
    for user in ("kubelet", "kube-proxy"):
        pki.kubeconfig(paths, user)
    write(paths.config / "resolv.conf", "")
    proxy_config = write(paths.config / "kube-proxy.json", json.dumps(render_kube_proxy(paths), indent=1))
    start_kubelet(paths, daemons)
    daemons.start("kube-proxy", [program(paths, "kube-proxy"), f"--config={proxy_config}"])
    daemons.wait_ready("kubelet", lambda: ready(kubectl))
    daemons.wait_ready("kube-proxy", lambda: http_ok(paths, f"http://{_PROXY_HEALTH}/healthz"))


def start_kubelet(paths: Paths, daemons: Daemons) -> None:
    """Start the kubelet; pods that run already are taken over as they are."""
    config = write(paths.config / "kubelet.json", json.dumps(render_kubelet(paths), indent=1))
    daemons.start(
        "kubelet",
        [
            program(paths, "kubelet"),
            f"--config={config}",
            f"--kubeconfig={paths.config / 'kubelet.kubeconfig'}",
            f"--root-dir={paths.state / 'kubelet'}",
            f"--hostname-override={NODE_NAME}",
            f"--node-ip={NODE_ADDRESS}",
        ],
    )


def ready(kubectl: Kubectl) -> bool:
    """Whether the node is Ready."""
    for item in kubectl.get("nodes")["items"]:
        if any(c["type"] == "Ready" and c["status"] == "True" for c in item["status"].get("conditions", [])):
            return True
    return False
