"""The cluster that tests marked `cluster` run against: one of our own, or the one that RLJOB_E2E_KUBECONFIG names."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from e2e import which_cluster
from e2e.cluster.binaries import kuberay_manifests
from e2e.cluster.cluster import Cluster
from e2e.cluster.paths import Paths
from e2e.support.crds import wait_established
from e2e.support.kubectl import Kubectl
from e2e.support.shared import folder_of_run, shared
from e2e.support.wait import wait_for

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def kubeconfig(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Path of an admin's kubeconfig, with kubectl on the PATH.

    Unless the user names another cluster, one is brought up, a control plane alone when no selected test needs nodes.
    It is taken down again unless it was up before.
    """
    try:
        given = which_cluster.given()
    except which_cluster.NotConfirmedError as error:
        pytest.exit(str(error), returncode=4)
    if given:
        if not shutil.which("kubectl"):
            pytest.fail(f"{which_cluster.GIVEN} is set, but there is no kubectl on the PATH")
        yield given
        return
    cluster = Cluster(Paths.from_env())
    nodes = any("installed_operator" in getattr(item, "fixturenames", ()) for item in request.session.items)
    folder = folder_of_run(tmp_path_factory)
    was_up = folder / "cluster.was-up"

    def up() -> None:
        if cluster.mode() is not None:
            was_up.touch()
        cluster.up(control_plane_only=not nodes)

    def down() -> None:
        if not was_up.exists():
            cluster.down()

    path = os.environ["PATH"]
    with shared(folder, "cluster", up, down):
        os.environ["PATH"] = f"{cluster.tools()}{os.pathsep}{path}"
        yield str(cluster.paths.admin_kubeconfig)
        os.environ["PATH"] = path


@pytest.fixture(scope="session")
def installed_crd(kubeconfig: str) -> Kubectl:
    """kubectl on a cluster that serves our CRD, as it stands in crds/, and KubeRay's, which a control plane lacks."""
    kubectl = Kubectl(kubeconfig)
    if not kubectl.names("crd/rayjobs.ray.io"):
        kubectl("apply", "--server-side", "-f", str(kuberay_manifests(Paths.from_env()) / "crds"))
        for kind in ("rayjobs", "rayclusters"):
            wait_established(kubectl, f"{kind}.ray.io")
    name = "rljobs.rljob.io"
    kubectl("apply", "--server-side", "--force-conflicts", "-f", str(ROOT / "crds/rljobs.yaml"))
    wait_established(kubectl, name)
    wait_for("discovery of rljobs", lambda: "rljobs" in kubectl("api-resources", "--api-group=rljob.io"), seconds=30)
    return kubectl
