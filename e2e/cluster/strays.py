"""What daemons leave at places that no setting moves. Only what is provably this cluster's is removed."""

from __future__ import annotations

import shutil
import socket
from contextlib import suppress
from pathlib import Path

from .paths import Paths
from .settings import NAME

_FOLDERS = (
    "/var/log/containers",
    "/var/lib/cni/results",
    "/var/lib/cni",
    "/var/lib/kubelet/device-plugins",
    "/var/lib/kubelet",
    "/run/containerd/runc/k8s.io",
    "/run/containerd/runc",
    "/run/containerd/s",
    "/run/containerd",
)


def remove(paths: Paths) -> None:
    """Remove log links, network results, runc states and dead sockets, then the folders that are empty."""
    for link in Path("/var/log/containers").glob("*.log"):
        if link.is_symlink() and str(link.readlink()).startswith(f"{paths.state}/"):
            link.unlink()
    results = Path("/var/lib/cni/results")
    for result in results.glob(f"{NAME}-*-eth0"):
        pod = result.name.removeprefix(f"{NAME}-").removesuffix("-eth0")
        (results / f"cni-loopback-{pod}-lo").unlink(missing_ok=True)
        result.unlink()
    for state in Path("/run/containerd/runc/k8s.io").glob("*/state.json"):
        if f'"{paths.state}/' in state.read_text():
            shutil.rmtree(state.parent)
    for folder in ("/run/containerd/s", "/var/lib/kubelet/device-plugins"):
        remove_dead_sockets(Path(folder))
    for name in _FOLDERS:
        with suppress(OSError):
            Path(name).rmdir()  # fails, as it should, where something else is in it


def remove_dead_sockets(folder: Path) -> None:
    """Remove the sockets of a folder on which nobody listens."""
    for path in folder.glob("*"):
        if not path.is_socket():
            continue
        with socket.socket(socket.AF_UNIX) as probe:
            probe.settimeout(1)
            try:
                probe.connect(str(path))
            except ConnectionRefusedError:
                path.unlink()
            except OSError:
                continue
