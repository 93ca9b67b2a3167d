"""Where the cluster tooling keeps its files: a cache that outlives runs and a state folder that does not."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from .settings import INDEX, NAME

# Device and cgroup names are fixed for a cluster's index, so its state has one place, whatever cache is in use.
# It is short on purpose: unix socket paths end at 107 bytes.
DEFAULT_STATE = Path("/var/lib", NAME)


@dataclass(frozen=True)
class Paths:
    """The folders of one cluster."""

    cache: Path
    state: Path

    @classmethod
    def from_env(cls, env: Mapping[str, str] | None = None) -> Paths:
        """Folders from RLJOB_CACHE (else the XDG cache) and RLJOB_CLUSTER_STATE."""
        env = os.environ if env is None else env
        cache = env.get("RLJOB_CACHE")
        if not cache:
            base = env.get("XDG_CACHE_HOME") or os.path.join(env.get("HOME", "/root"), ".cache")
            cache = os.path.join(base, "rljob")
        state = env.get("RLJOB_CLUSTER_STATE") or str(DEFAULT_STATE)
        return cls(cache=Path(cache).absolute(), state=Path(state).absolute())

    @property
    def bin(self) -> Path:
        """Built binaries, one file each, named by version and key."""
        return self.cache / "bin"

    @property
    def manifests(self) -> Path:
        """Manifests taken out of Go modules (the CRDs of KubeRay)."""
        return self.cache / "manifests"

    @property
    def containerd_root(self) -> Path:
        """containerd's images and snapshots: kept from one run to the next."""
        return self.cache / (f"containerd-{INDEX}" if INDEX else "containerd")

    @property
    def buildah(self) -> Path:
        """buildah's storage."""
        return self.cache / "buildah"

    @property
    def images(self) -> Path:
        """Base image archives and records of what was loaded."""
        return self.cache / "images"

    @property
    def last_logs(self) -> Path:
        """Logs of the last run that ended or failed."""
        return self.cache / "logs" / "last"

    @property
    def logs(self) -> Path:
        return self.state / "logs"

    @property
    def pki(self) -> Path:
        return self.state / "pki"

    @property
    def config(self) -> Path:
        return self.state / "config"

    @property
    def netns(self) -> Path:
        """File onto which the network namespace is bound."""
        return self.state / "netns"

    @property
    def volumes(self) -> Path:
        """Folders of the hostPath PersistentVolumes."""
        return self.state / "volumes"

    @property
    def containerd_socket(self) -> Path:
        return self.state / "containerd.sock"

    @property
    def admin_kubeconfig(self) -> Path:
        return self.state / "admin.kubeconfig"
