"""A control plane without nodes that serves KubeRay's CRDs and ours: the fault suite plays everybody else."""

import pytest

from e2e.cluster.binaries import kuberay_manifests
from e2e.cluster.paths import Paths
from e2e.faults.access import Access
from e2e.support.crds import wait_established
from e2e.support.kubectl import Kubectl


@pytest.fixture(scope="session")
def control_plane(installed_crd: Kubectl) -> Kubectl:
    """kubectl on it. Where a node or KubeRay runs, they would act against the players of the suite."""
    if nodes := installed_crd.names("nodes"):
        pytest.skip(
            f"the fault suite plays KubeRay and kubelet, and {', '.join(nodes)} is there: `make faults` runs it"
        )
    crds = kuberay_manifests(Paths.from_env()) / "crds"
    installed_crd("apply", "--server-side", "--force-conflicts", "-f", str(crds))
    for kind in ("rayjobs", "rayclusters"):
        wait_established(installed_crd, f"{kind}.ray.io")
    return installed_crd


@pytest.fixture(scope="session")
def access(control_plane: Kubectl) -> Access:
    """The admin's way to the apiserver."""
    return Access.load(control_plane.kubeconfig)
