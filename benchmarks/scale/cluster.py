"""The cluster of the measurement: a real control plane with an audit log, the scheduler, KubeRay, nodes by kwok."""

import contextlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil

from e2e.cluster import binaries, control_plane, kuberay, pki
from e2e.cluster.cluster import Cluster
from e2e.cluster.paths import Paths
from e2e.cluster.run import ClusterError, write
from e2e.cluster.settings import CLUSTER_ADDRESS, NODE_SERVER

ROOT = Path(__file__).resolve().parents[2]
KUBERAY, OPERATOR = "scale-kuberay", "scale-operator"
"""User names, which tell their requests apart in the audit log."""
DASHBOARD_PORT, OPERATOR_PORT = 18265, 18080
NODES, PODS_PER_NODE = 10, 5000
CLAIM = "shared"
"""One claim of each namespace, which all jobs write into: volumes are nobody's subject here."""


class Machine:
    """The cluster and the processes on it."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster, self.paths, self.daemons = cluster, cluster.paths, cluster.daemons
        self.audit_log = cluster.paths.state / "audit.log"
        self.finished = cluster.paths.state / "finished"
        """Folder of the simulated dashboards: a file named as a namespace ends the jobs there."""
        self.kubectl = cluster.kubectl()

    @property
    def admin(self) -> str:
        """Kubeconfig of the measurement itself, as text."""
        return self.paths.admin_kubeconfig.read_text()

    def process(self, name: str) -> psutil.Process:
        """A daemon's process. Raises ClusterError when it does not run."""
        self.daemons.check()
        return psutil.Process(next(record.pid for record in self.daemons.records() if record.name == name))

    def start_operator(self, *flags: str, group: str = "system:masters") -> None:
        """Start ours, with further flags, as a user of a group; /readyz says when it is ready."""
        kubeconfig = pki.client(self.paths, OPERATOR, group, NODE_SERVER)
        command = [sys.executable, "-m", "rljob_operator", "--port", str(OPERATOR_PORT), "--log-level", "WARNING"]
        command += flags
        self.daemons.start(OPERATOR, command, {"KUBECONFIG": str(kubeconfig)})

    def stop_operator(self) -> None:
        """End it as a Deployment would."""
        self.daemons.stop([OPERATOR], timeout=30)

    @property
    def operator_url(self) -> str:
        """Where ours serves /readyz and /metrics."""
        return f"http://{CLUSTER_ADDRESS}:{OPERATOR_PORT}"

    def namespace(self, name: str) -> None:
        """A namespace with a bound claim."""
        group = {"namespace": name}
        size, modes = {"storage": "1Gi"}, ["ReadWriteMany"]
        volume = {
            "capacity": size,
            "accessModes": modes,
            "storageClassName": "",
            "hostPath": {"path": "/nowhere"},
            "claimRef": {"namespace": name, "name": CLAIM},
        }
        claim = {"accessModes": modes, "storageClassName": "", "volumeName": name, "resources": {"requests": size}}
        self.kubectl.apply(
            [
                {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}},
                {"apiVersion": "v1", "kind": "PersistentVolume", "metadata": {"name": name}, "spec": volume},
                {
                    "apiVersion": "v1",
                    "kind": "PersistentVolumeClaim",
                    "metadata": {"name": CLAIM, **group},
                    "spec": claim,
                },
            ]
        )
        self.daemons.wait_ready(
            f"claim of {name}",
            lambda: self.kubectl.get("-n", name, "pvc", CLAIM).get("status", {}).get("phase") == "Bound",
        )


@contextlib.contextmanager
def machine() -> Iterator[Machine]:
    """Everything but our operator, up; taken away at the end. Raises ClusterError when such a cluster is up already."""
    cluster = Cluster(Paths.from_env())
    if cluster.mode() is not None:
        raise ClusterError("a cluster is up under this index: take it down, or set RLJOB_CLUSTER_INDEX to another")
    needed = ("kuberay-operator", "kube-scheduler", "kwok")
    binaries.ensure(cluster.paths, {name: {**binaries.FULL, **binaries.OPTIONAL}[name] for name in needed})
    ours = Machine(cluster)
    try:
        policy = write(cluster.paths.state.with_name(f"{cluster.paths.state.name}-audit.yaml"), json.dumps(_policy()))
        flags = {
            "kube-apiserver": [
                f"--audit-policy-file={policy}",
                f"--audit-log-path={ours.audit_log}",
                "--audit-log-maxsize=10000",
                # Debian's etcd announces no progress, so the apiserver refuses what it takes for watch lists, kwok's
                # watches among them: pods would be seen by listing them anew alone, up to a minute late.
                "--feature-gates=WatchList=false",
            ],
            # On a busy machine kwok is late with the nodes' signs of life, and pods would be taken for lost.
            "kube-controller-manager": ["--node-monitor-grace-period=1h"],
        }
        cluster.up(control_plane_only=True, flags=flags)
        policy.unlink()
        _start(ours)
        yield ours
    finally:
        cluster.down()


def _policy() -> dict[str, Any]:
    """Who asked what, of the two operators alone; one line a request."""
    return {
        "apiVersion": "audit.k8s.io/v1",
        "kind": "Policy",
        "omitStages": ["RequestReceived", "ResponseStarted"],
        "rules": [{"level": "Metadata", "users": [KUBERAY, OPERATOR]}, {"level": "None"}],
    }


def _start(ours: Machine) -> None:
    paths, daemons, kubectl = ours.paths, ours.daemons, ours.kubectl
    ours.finished.mkdir()
    kuberay.apply_crds(paths, kubectl)
    kubectl("apply", "--server-side", "-f", ROOT / "crds/rljobs.yaml")
    for path in ("/apis/ray.io/v1/rayjobs", "/apis/rljob.io/v1alpha1/rljobs"):
        daemons.wait_ready(path, lambda path=path: kubectl.answers(path))  # type: ignore[misc]
    scheduler = binaries.program(paths, "kube-scheduler")
    daemons.start("kube-scheduler", [scheduler, *control_plane.scheduler_flags(paths)])
    kwok = pki.client(paths, "scale-kwok", "system:masters", NODE_SERVER)
    flags = [
        f"--kubeconfig={kwok}",
        "--manage-all-nodes=true",
        "--cidr=10.64.0.1/10",
        "--node-lease-duration-seconds=0",
    ]
    daemons.start("kwok", [binaries.program(paths, "kwok"), *flags])
    kubectl.apply(_node(index) for index in range(NODES))
    dashboard = ["-m", "benchmarks.scale.dashboard", "--port", str(DASHBOARD_PORT), "--folder", str(ours.finished)]
    daemons.start("dashboards", [sys.executable, *dashboard], {"PYTHONPATH": str(ROOT)})
    proxy = f"http://127.0.0.1:{DASHBOARD_PORT}"
    user = pki.client(paths, KUBERAY, "system:masters", NODE_SERVER)
    flags = [
        "--enable-leader-election=false",
        "--metrics-addr=127.0.0.1:18081",
        "--health-probe-bind-address=127.0.0.1:18082",
    ]
    environment = {"KUBECONFIG": str(user), "HTTP_PROXY": proxy, "http_proxy": proxy, "NO_PROXY": "", "no_proxy": ""}
    daemons.start(KUBERAY, [binaries.program(paths, "kuberay-operator"), *flags], environment)
    daemons.wait_ready("nodes", lambda: _ready_nodes(ours) == NODES)


def _node(index: int) -> dict[str, Any]:
    resources = {"cpu": "100000", "memory": "1000Ti", "pods": str(PODS_PER_NODE)}
    return {
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {"name": f"kwok-{index}", "annotations": {"kwok.x-k8s.io/node": "fake"}},
        "status": {"allocatable": resources, "capacity": resources},
    }


def _ready_nodes(ours: Machine) -> int:
    nodes = ours.kubectl.get("nodes")["items"]
    return sum(
        any(c["type"] == "Ready" and c["status"] == "True" for c in node.get("status", {}).get("conditions", []))
        for node in nodes
    )
