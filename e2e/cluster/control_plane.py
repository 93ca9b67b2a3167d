"""etcd, apiserver, controller-manager, scheduler."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from . import pki
from .binaries import program
from .kubectl import Kubectl
from .netns import http_ok
from .paths import Paths
from .processes import Daemons
from .settings import (
    API_PORT,
    CLUSTER_DOMAIN,
    HOST_SERVER,
    NODE_ADDRESS,
    POD_CIDR,
    SERVICE_CIDR,
)

Flags = Mapping[str, Sequence[str]]
"""Further flags of programs, by their names."""

_ETCD = "http://127.0.0.1:2379"


def etcd_flags(paths: Paths) -> list[str]:
    """etcd, on the namespace's loopback alone."""
    peer = "http://127.0.0.1:2380"
    return [
        "--name=rljob",
        f"--data-dir={paths.state / 'etcd'}",
        f"--listen-client-urls={_ETCD}",
        f"--advertise-client-urls={_ETCD}",
        f"--listen-peer-urls={peer}",
        f"--initial-advertise-peer-urls={peer}",
        f"--initial-cluster=rljob={peer}",
        "--auto-compaction-retention=1h",
    ]


def apiserver_flags(paths: Paths) -> list[str]:
    """The apiserver as kubeadm would run it: RBAC, NodeRestriction, real service account tokens, aggregation."""
    folder = paths.pki
    return [
        f"--etcd-servers={_ETCD}",
        "--bind-address=0.0.0.0",
        f"--secure-port={API_PORT}",
        f"--advertise-address={NODE_ADDRESS}",
        f"--service-cluster-ip-range={SERVICE_CIDR}",
        "--authorization-mode=Node,RBAC",
        "--enable-admission-plugins=NodeRestriction",
        "--allow-privileged=true",
        f"--client-ca-file={folder / 'ca.crt'}",
        f"--tls-cert-file={folder / 'apiserver.crt'}",
        f"--tls-private-key-file={folder / 'apiserver.key'}",
        f"--kubelet-client-certificate={folder / 'apiserver-kubelet-client.crt'}",
        f"--kubelet-client-key={folder / 'apiserver-kubelet-client.key'}",
        f"--kubelet-certificate-authority={folder / 'ca.crt'}",
        "--kubelet-preferred-address-types=InternalIP",  # the node's name is in no DNS
        f"--service-account-issuer=https://kubernetes.default.svc.{CLUSTER_DOMAIN}",
        f"--service-account-key-file={folder / 'sa.pub'}",
        f"--service-account-signing-key-file={folder / 'sa.key'}",
        f"--requestheader-client-ca-file={folder / 'front-proxy-ca.crt'}",
        f"--requestheader-allowed-names={pki.FRONT_PROXY}",
        "--requestheader-username-headers=X-Remote-User",
        "--requestheader-group-headers=X-Remote-Group",
        "--requestheader-extra-headers-prefix=X-Remote-Extra-",
        f"--proxy-client-cert-file={folder / f'{pki.FRONT_PROXY}.crt'}",
        f"--proxy-client-key-file={folder / f'{pki.FRONT_PROXY}.key'}",
        # Reads the watch cache at a revision that Debian's etcd, being older, does not announce: endless time-outs.
        "--feature-gates=SizeBasedListCostEstimate=false",
        "--profiling=false",
    ]


def controller_manager_flags(paths: Paths) -> list[str]:
    """The controller-manager, each controller with its own service account."""
    config = paths.config / "controller-manager.kubeconfig"
    return [
        f"--kubeconfig={config}",
        f"--authentication-kubeconfig={config}",
        f"--authorization-kubeconfig={config}",
        "--bind-address=127.0.0.1",
        "--use-service-account-credentials=true",
        f"--root-ca-file={paths.pki / 'ca.crt'}",
        f"--service-account-private-key-file={paths.pki / 'sa.key'}",
        f"--cluster-signing-cert-file={paths.pki / 'ca.crt'}",
        f"--cluster-signing-key-file={paths.pki / 'ca.key'}",
        f"--cluster-cidr={POD_CIDR}",
        # The default of 20 requests a second makes the start take five seconds longer.
        "--kube-api-qps=200",
        "--kube-api-burst=400",
        "--leader-elect=false",
        "--profiling=false",
    ]


def scheduler_flags(paths: Paths) -> list[str]:
    """The scheduler."""
    config = paths.config / "scheduler.kubeconfig"
    return [
        f"--kubeconfig={config}",
        f"--authentication-kubeconfig={config}",
        f"--authorization-kubeconfig={config}",
        "--bind-address=127.0.0.1",
        "--leader-elect=false",
        "--profiling=false",
    ]


def start(paths: Paths, daemons: Daemons, *, scheduler: bool, flags: Flags | None = None) -> Kubectl:
    """Bring up the control plane, and give back a kubectl for its admin. `flags`: more of them, by program."""
    more = flags or {}
    pki.create(paths)
    pki.kubeconfig(paths, "admin", HOST_SERVER, paths.admin_kubeconfig)
    for user in ("controller-manager", "scheduler"):
        pki.kubeconfig(paths, user)
    daemons.start("etcd", ["etcd", *etcd_flags(paths)])
    daemons.wait_ready("etcd", lambda: http_ok(paths, f"{_ETCD}/health"))
    flags_of_apiserver = [*apiserver_flags(paths), *more.get("kube-apiserver", ())]
    daemons.start("kube-apiserver", [program(paths, "kube-apiserver"), *flags_of_apiserver], _fewer_collections())
    kubectl = Kubectl(program(paths, "kubectl"), paths.admin_kubeconfig)
    daemons.wait_ready("kube-apiserver", lambda: kubectl.answers("/readyz"))
    manager = "kube-controller-manager"
    _start(paths, daemons, manager, [*controller_manager_flags(paths), *more.get(manager, ())])
    if scheduler:
        _start(paths, daemons, "kube-scheduler", scheduler_flags(paths))
    return kubectl


def wait_accounts(daemons: Daemons, kubectl: Kubectl) -> None:
    """Wait for the controller-manager's work: pods are refused until their namespace has its service account."""
    daemons.wait_ready("kube-controller-manager", lambda: kubectl.exists("serviceaccount/default", "default"))


def _fewer_collections() -> dict[str, str]:
    """Go's garbage collector less often: a third to a quarter off the apiserver's CPU for each write of an RLJob."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {"GOGC": "400", "GOMEMLIMIT": str(memory // 4)}


def _start(paths: Paths, daemons: Daemons, name: str, flags: list[str]) -> None:
    binary: Path = program(paths, name)
    daemons.start(name, [binary, *flags])
