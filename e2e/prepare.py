"""`python -m e2e.prepare`: build and download what the tests need, before any of them runs and with no test's limit.

What is there already costs a second. Arguments are parts of `make test`; none means all of them.
"""

import argparse
import subprocess
import sys
from collections.abc import Callable, Iterable

from e2e.cluster import apt, binaries
from e2e.cluster.cluster import Cluster
from e2e.cluster.paths import Paths
from e2e.cluster.run import ClusterError, say
from e2e.cluster.settings import CONTROL_PLANE_PACKAGES, IMAGE_PACKAGES, NODE_PACKAGES
from e2e.support import prometheus


def control_plane() -> None:
    """etcd, apiserver, controller-manager, and the definitions of KubeRay."""
    apt.ensure(CONTROL_PLANE_PACKAGES)
    binaries.ensure(Paths.from_env(), binaries.CONTROL_PLANE)
    binaries.kuberay_manifests(Paths.from_env())


def helm() -> None:
    """Helm, under its plain name."""
    binaries.ensure(Paths.from_env(), {"helm": binaries.HELM})
    Cluster(Paths.from_env()).link_tools()


def kueue() -> None:
    """Kueue, and what it takes to play nodes for it."""
    wanted = ("kube-scheduler", "kuberay-operator", "kwok", "kueue")
    modules = {**binaries.FULL, **binaries.OPTIONAL}
    binaries.ensure(Paths.from_env(), {name: modules[name] for name in wanted})
    binaries.kueue_manifests(Paths.from_env())


def node() -> None:
    """Kubelet, container runtime and the rest of a node."""
    apt.ensure(NODE_PACKAGES)
    binaries.ensure(Paths.from_env(), binaries.FULL)


def images() -> None:
    """RLJob's own images, in the builder's storage."""
    apt.ensure(IMAGE_PACKAGES)
    done = subprocess.run([sys.executable, "-m", "images.build"], timeout=5400, check=False)
    if done.returncode:
        raise ClusterError("the images could not be built")


def metrics() -> None:
    """Prometheus and promtool."""
    prometheus.binary("promtool")


NEEDS: dict[str, tuple[Callable[[], None], ...]] = {
    "quick": (),
    "slow": (),
    "faults": (control_plane,),
    "apiserver": (control_plane, helm, metrics),
    "kueue": (control_plane, helm, kueue),
    "helm": (helm, metrics),
    "images": (control_plane, helm, node, images),
    "jobs": (control_plane, helm, node, images, metrics),
}
"""What each part of `make test` needs."""


def needed(parts: Iterable[str]) -> list[Callable[[], None]]:
    """The preparations of these parts, each once, in an order that builds nothing twice."""
    wanted = {step for part in parts for step in NEEDS[part]}
    return [step for step in (control_plane, helm, kueue, node, images, metrics) if step in wanted]


def main(arguments: list[str] | None = None) -> int:
    """The command; its exit code."""
    parser = argparse.ArgumentParser(prog="python -m e2e.prepare", description=__doc__)
    parser.add_argument("parts", nargs="*", metavar="PART", help=", ".join(NEEDS))
    parts = parser.parse_args(arguments).parts or list(NEEDS)
    if unknown := [part for part in parts if part not in NEEDS]:
        parser.error(f"{', '.join(unknown)}: no part of the tests; there are {', '.join(NEEDS)}")
    try:
        for step in needed(parts):
            say(f"prepare: {(step.__doc__ or '').rstrip('.')}")
            step()
    except (ClusterError, subprocess.SubprocessError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
