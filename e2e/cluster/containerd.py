"""containerd: its configuration, and what is asked of it through `ctr`."""

from __future__ import annotations

import shutil
from pathlib import Path

from .paths import Paths
from .processes import Daemons
from .run import ClusterError, Word, run, say, succeeds, write
from .settings import NAME, PAUSE_IMAGE, POD_CIDR

NAMESPACE = "k8s.io"
_CRI = "io.containerd.grpc.v1.cri"


def render_config(paths: Paths) -> str:
    """config.toml. restrict_oom_score_adj: lowering it takes CAP_SYS_RESOURCE, which a sandbox lacks."""
    return f"""version = 2
root = "{paths.containerd_root}"
state = "{paths.state / "containerd"}"
oom_score = 0
disabled_plugins = [
  "io.containerd.snapshotter.v1.aufs", "io.containerd.snapshotter.v1.btrfs",
  "io.containerd.snapshotter.v1.devmapper", "io.containerd.snapshotter.v1.zfs",
]

[grpc]
  address = "{paths.containerd_socket}"

[plugins."{_CRI}"]
  sandbox_image = "{PAUSE_IMAGE}"
  restrict_oom_score_adj = true
  netns_mounts_under_state_dir = true
  [plugins."{_CRI}".cni]
    bin_dir = "/usr/lib/cni"
    conf_dir = "{paths.config / "cni"}"
  [plugins."{_CRI}".containerd]
    snapshotter = "overlayfs"
    default_runtime_name = "runc"
    [plugins."{_CRI}".containerd.runtimes.runc]
      runtime_type = "io.containerd.runc.v2"
      [plugins."{_CRI}".containerd.runtimes.runc.options]
        SystemdCgroup = false
"""


def render_cni(paths: Paths) -> dict[str, object]:
    """One veth pair and one route per pod: without a bridge, replies to a Service take the way back through NAT."""
    ipam = {"type": "host-local", "dataDir": str(paths.state / "ipam"), "ranges": [[{"subnet": POD_CIDR}]]}
    pods = {"type": "ptp", "ipMasq": False, "ipam": {**ipam, "routes": [{"dst": "0.0.0.0/0"}]}}
    ports = {"type": "portmap", "capabilities": {"portMappings": True}}
    return {"cniVersion": "0.4.0", "name": NAME, "plugins": [pods, ports]}


class Containerd:
    """The node's containerd, seen through ctr."""

    def __init__(self, paths: Paths, daemons: Daemons) -> None:
        self._paths = paths
        self._daemons = daemons

    def ctr(self, *arguments: Word, timeout: float = 60, check: bool = True) -> str:
        """Run ctr in the namespace of Kubernetes."""
        command: list[Word] = ["ctr", "--address", self._paths.containerd_socket, "--namespace", NAMESPACE, *arguments]
        return run(command, timeout=timeout, check=check).stdout

    def _answers(self) -> bool:
        if not self._paths.containerd_socket.exists():
            return False
        return succeeds(["ctr", "--address", self._paths.containerd_socket, "--connect-timeout", "2s", "version"])

    def _start(self) -> None:
        config = self._paths.config / "containerd.toml"
        self._daemons.start("containerd", ["containerd", "--config", config])
        self._daemons.wait_ready("containerd", self._answers)

    def start(self) -> None:
        """Start containerd, on the images of earlier runs but on none of their containers."""
        if self._daemons.running("containerd"):
            return
        write(self._paths.config / "containerd.toml", render_config(self._paths))
        self._paths.containerd_root.mkdir(parents=True, exist_ok=True)
        # Beside its database the CRI plugin keeps a folder per container; those of a run that crashed are stale.
        for name in ("containers", "sandboxes"):
            shutil.rmtree(self._paths.containerd_root / _CRI / name, ignore_errors=True)
        self._start()
        if self.ctr("containers", "list", "--quiet").split():
            say("removing the containers of a run that crashed")
            self.remove_containers()
            self._daemons.stop(["containerd"])  # it has read them into its memory already
            self._start()

    def remove_containers(self) -> None:
        """End every task and remove every container; images stay."""
        for task in self.ctr("tasks", "list", "--quiet").split():
            self.ctr("tasks", "kill", "--all", "--signal", "SIGKILL", task, check=False)
        for task in self.ctr("tasks", "list", "--quiet").split():
            self.ctr("tasks", "delete", "--force", task, check=False)
        for container in self.ctr("containers", "list", "--quiet").split():
            self.ctr("containers", "delete", container, check=False)

    def pid(self, container: str) -> int:
        """Process id, on this machine, of a container's main process. Raises ClusterError when it does not run."""
        rows = [line.split() for line in self.ctr("tasks", "list").splitlines()[1:]]
        found = [int(row[1]) for row in rows if row[0] == container and row[2] == "RUNNING"]
        if not found:
            raise ClusterError(f"container {container} does not run")
        return found[0]

    def images(self) -> dict[str, str]:
        """Image name -> digest of its manifest."""
        rows = [line.split() for line in self.ctr("images", "list").splitlines()[1:]]
        return {row[0]: row[2] for row in rows if len(row) > 2}

    def import_archive(self, archive: Path) -> None:
        """Import a docker or OCI archive."""
        self.ctr("images", "import", archive, timeout=900)
