"""A control plane without nodes that serves KubeRay's CRDs and ours: the fault suite plays everybody else."""

import pytest

from e2e.faults.access import Access
from e2e.support.kubectl import Kubectl


@pytest.fixture(scope="session")
def control_plane(installed_crd: Kubectl) -> Kubectl:
    """kubectl on it. Where a node or KubeRay runs, they would act against the players of the suite."""
    if nodes := installed_crd.names("nodes"):
        pytest.skip(
            f"the fault suite plays KubeRay and kubelet, and {', '.join(nodes)} is there: `make faults` runs it"
        )
    return installed_crd


@pytest.fixture(scope="session")
def access(control_plane: Kubectl) -> Access:
    """The admin's way to the apiserver."""
    return Access.load(control_plane.kubeconfig)
