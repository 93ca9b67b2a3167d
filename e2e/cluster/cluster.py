"""Bringing the whole up, and taking it away."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

from . import (
    apt,
    binaries,
    cgroups,
    control_plane,
    dns,
    firewall,
    kuberay,
    netns,
    node,
    node_images,
    strays,
    volumes,
)
from .containerd import Containerd, render_cni
from .kubectl import Kubectl
from .paths import Paths
from .processes import Daemons
from .run import ClusterError, lock, say, write
from .settings import CONTROL_PLANE_PACKAGES, NODE_PACKAGES

_CONTROL_PLANE = ("etcd", "kube-apiserver", "kube-controller-manager")
_NODE = ("kube-scheduler", "containerd", "kubelet", "kube-proxy", "coredns", "kube-router")


class Cluster:
    """The cluster of this machine."""

    def __init__(self, paths: Paths) -> None:
        self.paths = paths
        self.daemons = Daemons(paths)
        self.containerd = Containerd(paths, self.daemons)

    @property
    def _marker(self) -> Path:
        """There once a bring-up has come to its end."""
        return self.paths.state / "up"

    @property
    def _lock(self) -> Path:
        # Beside the state folder, which `down` removes while it holds the lock.
        return self.paths.state.with_name(f".{self.paths.state.name}.lock")

    def kubectl(self) -> Kubectl:
        """kubectl for the admin."""
        return Kubectl(binaries.program(self.paths, "kubectl"), self.paths.admin_kubeconfig)

    def mode(self) -> str | None:
        """'full' or 'control-plane' when such a cluster is up and every daemon of it runs, else None."""
        try:
            mode = self._marker.read_text().strip()
        except FileNotFoundError:
            return None
        wanted = _CONTROL_PLANE if mode == "control-plane" else (*_CONTROL_PLANE, *_NODE)
        return mode if all(self.daemons.running(name) for name in wanted) else None

    def up(self, *, control_plane_only: bool = False, flags: control_plane.Flags | None = None) -> None:
        """Bring the cluster up, its control plane with further flags; when it is up, only renew the volumes.

        A full cluster also serves who asks for a control plane. Anything half-made is taken away first.
        """
        if os.geteuid() != 0:
            raise ClusterError("needs root (network namespaces, cgroups, mounts)")
        apt.ensure(CONTROL_PLANE_PACKAGES if control_plane_only else NODE_PACKAGES)
        wanted = binaries.CONTROL_PLANE if control_plane_only else binaries.FULL
        binaries.ensure(self.paths, wanted)
        self.link_tools()
        with lock(self._lock):
            mode = self.mode()
            if mode == "full" or (mode == "control-plane" and control_plane_only):
                if mode == "full":
                    volumes.refill(self.paths, self.kubectl())
                say("already up")
                return
            if mode is None and self._leftovers():
                say("cleaning up what an earlier run left")
                self._down()
            try:
                self._start(control_plane_only, flags)
            except BaseException as error:
                say(f"bring-up failed; logs are in {self.paths.last_logs}")
                self._down()
                if isinstance(error, ClusterError):
                    raise ClusterError(f"the cluster did not come up: {error}") from error
                raise

    def _start(self, control_plane_only: bool, flags: control_plane.Flags | None) -> None:
        for folder in (self.paths.state, self.paths.config, self.paths.config / "cni"):
            folder.mkdir(parents=True, exist_ok=True)
            folder.chmod(0o755)
        self._marker.unlink(missing_ok=True)
        cgroups.create()
        netns.create(self.paths)
        kubectl = control_plane.start(self.paths, self.daemons, scheduler=not control_plane_only, flags=flags)
        if not control_plane_only:
            # Early, since the apiserver takes seconds to serve CRDs of that size.
            kuberay.apply_crds(self.paths, kubectl)
            cni = self.paths.config / "cni" / "10-rljob.conflist"
            write(cni, json.dumps(render_cni(self.paths), indent=1))
            self.containerd.start()
            node_images.load_pause(self.paths, self.containerd)
            node.start(self.paths, self.daemons, kubectl)
            dns.start(self.paths, self.daemons, kubectl)
            firewall.start(self.paths, self.daemons, kubectl)
        control_plane.wait_accounts(self.daemons, kubectl)
        if not control_plane_only:
            volumes.refill(self.paths, kubectl)
            kuberay.install(self.paths, self.daemons, self.containerd, kubectl)
        write(self._marker, "control-plane" if control_plane_only else "full")
        say(f"up: export KUBECONFIG={self.paths.admin_kubeconfig}")

    def down(self) -> None:
        """Take everything away but the caches."""
        if os.geteuid() != 0:
            raise ClusterError("needs root")
        with lock(self._lock):
            self._down()
        self._lock.unlink(missing_ok=True)
        say("down")

    def _down(self) -> None:
        self.daemons.stop(["kubelet"])  # first: it would start anew what is ended next
        if self.daemons.running("containerd"):
            try:
                self.containerd.remove_containers()
            except ClusterError as error:
                say(f"containerd does not help ({error}); ending its processes by their cgroup")
        self.daemons.stop()
        cgroups.kill_all()
        cgroups.remove()
        netns.remove(self.paths)
        netns.unmount(self.paths.state)
        netns.unmount(self.paths.containerd_root)
        self._keep_logs()
        strays.remove(self.paths)
        shutil.rmtree(self.paths.state, ignore_errors=True)
        if self.paths.state.exists():
            shutil.rmtree(self.paths.state)

    def _leftovers(self) -> bool:
        return self.paths.state.exists() or bool(cgroups.leftovers()) or netns.host_link_exists()

    def _keep_logs(self) -> None:
        """Logs of daemons and pods outlive the cluster, for who wants to know why."""
        sources = [folder for folder in (self.paths.logs, self.paths.state / "pod-logs") if folder.exists()]
        if not sources:
            return
        shutil.rmtree(self.paths.last_logs, ignore_errors=True)
        self.paths.last_logs.mkdir(parents=True)
        for source in sources:
            shutil.copytree(source, self.paths.last_logs, dirs_exist_ok=True, symlinks=True)

    def link_tools(self) -> None:
        folder = self.tools()
        folder.mkdir(parents=True, exist_ok=True)
        for name in ("kubectl", "helm"):
            link, binary = folder / name, binaries.program(self.paths, name)
            if binary.exists() and (not link.is_symlink() or link.readlink() != binary):
                link.unlink(missing_ok=True)
                link.symlink_to(binary)

    def tools(self) -> Path:
        """Folder with kubectl and helm under their plain names."""
        return self.paths.cache / "tools"

    def status(self) -> dict[str, object]:
        """What runs."""
        records = self.daemons.records()
        return {
            "mode": self.mode(),
            "daemons": {record.name: self.daemons.running(record.name) for record in records},
            "processes": len(cgroups.processes()),
            "network": netns.exists(self.paths),
            "kubeconfig": str(self.paths.admin_kubeconfig) if self.paths.admin_kubeconfig.exists() else None,
        }
