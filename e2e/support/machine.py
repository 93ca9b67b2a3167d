"""What only the machine that the node is can be asked: its processes, its kubelet, a disk that is full."""

import contextlib
import json
import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from e2e.cluster import node
from e2e.cluster.cluster import Cluster
from e2e.support.kubectl import Kubectl


class Machine:
    """The machine of our own cluster."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self._undo = contextlib.ExitStack()

    def kill(self, pods: list[dict[str, Any]]) -> None:
        """SIGKILL the main process of each container; the pods stay."""
        self._signal(pods, signal.SIGKILL)

    def freeze(self, pods: list[dict[str, Any]]) -> None:
        """SIGSTOP the main process of each container: it is there, its port is open, and it never answers."""
        self._signal(pods, signal.SIGSTOP)

    def _signal(self, pods: list[dict[str, Any]], number: signal.Signals) -> None:
        containers = [status["containerID"] for pod in pods for status in pod["status"]["containerStatuses"]]
        assert containers, "no container"
        for container in containers:
            os.kill(self._cluster.containerd.pid(container.removeprefix("containerd://")), number)

    def node_ready(self) -> bool:
        """Whether the control plane takes the node for ready."""
        return node.ready(self._cluster.kubectl())

    @contextlib.contextmanager
    def without_kubelet(self) -> Iterator[None]:
        """No kubelet: the containers run on, the control plane hears nothing of them."""
        self._cluster.daemons.stop(["kubelet"])
        try:
            yield
        finally:
            node.start_kubelet(self._cluster.paths, self._cluster.daemons)

    def small_volume(self, kubectl: Kubectl, name: str, mebibytes: int) -> Path:
        """A bound claim `name` over a file system of that size, until `close`. Returns its folder on this machine."""
        volume = f"{kubectl.namespace}-{name}"
        folder = self._cluster.paths.volumes / volume
        folder.mkdir(parents=True)
        self._undo.callback(folder.rmdir)
        _run("mount", "-t", "tmpfs", "-o", f"size={mebibytes}m,mode=0777", "tmpfs", str(folder))
        self._undo.callback(_run, "umount", "--lazy", str(folder))
        shared: dict[str, Any] = {"storageClassName": "", "accessModes": ["ReadWriteMany"]}
        size = {"storage": f"{mebibytes}Mi"}
        for kind, its, spec in (
            ("PersistentVolume", volume, {"capacity": size, "hostPath": {"path": str(folder)}}),
            ("PersistentVolumeClaim", name, {"resources": {"requests": size}, "volumeName": volume}),
        ):
            item = {"apiVersion": "v1", "kind": kind, "metadata": {"name": its}, "spec": shared | spec}
            kubectl.apply(json.dumps(item))
        self._undo.callback(kubectl, "delete", "pv", volume, "--wait=false")
        return folder

    def close(self) -> None:
        """Take back what was made, once nothing uses it any more."""
        node.start_kubelet(self._cluster.paths, self._cluster.daemons)
        self._undo.close()


@contextlib.contextmanager
def full(folder: Path) -> Iterator[None]:
    """The file system of a folder without a byte left."""
    ballast = folder / "ballast"
    with ballast.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(bytes(1 << 16))
    try:
        yield
    finally:
        ballast.unlink()


def _run(*command: str) -> None:
    subprocess.run(command, check=True, timeout=30, capture_output=True)
