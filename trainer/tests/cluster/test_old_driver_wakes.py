"""An old driver that was frozen wakes up late, on a real apiserver: it must write nothing any more."""

import base64
import json
import os
import signal
import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

import pytest
import yaml

from e2e.conftest import installed_crd, kubeconfig  # noqa: F401 - fixtures
from e2e.support.kubectl import Kubectl
from e2e.support.wait import wait_for

pytestmark = [pytest.mark.cluster, pytest.mark.slow]
ROOT = Path(__file__).parents[3]
OBJECTS = """
{apiVersion: v1, kind: ServiceAccount, metadata: {name: driver}}
---
{apiVersion: v1, kind: ConfigMap, metadata: {name: demo-progress}}
---
{apiVersion: v1, kind: ConfigMap, metadata: {name: demo-control}}
---
{apiVersion: coordination.k8s.io/v1, kind: Lease, metadata: {name: demo-driver, annotations: {rljob.io/attempt: "1"}}}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: Role
metadata: {name: driver}
rules:
  - {apiGroups: [""], resources: [configmaps], verbs: [get, patch, update]}
  - {apiGroups: [coordination.k8s.io], resources: [leases], verbs: [get, patch, update]}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: RoleBinding
metadata: {name: driver}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: Role, name: driver}
subjects: [{kind: ServiceAccount, name: driver, namespace: NAMESPACE}]
"""


@pytest.fixture
def kubectl(installed_crd: Kubectl) -> Iterator[Kubectl]:  # noqa: F811
    client = Kubectl(installed_crd.kubeconfig, f"fence-{uuid.uuid4().hex[:8]}")
    client("create", "namespace", client.namespace)
    client.apply(OBJECTS.replace("NAMESPACE", client.namespace))
    yield client
    client("delete", "namespace", client.namespace, "--wait=false")


class Drivers:
    """Starts driver processes as pods would, and ends those that are left."""

    def __init__(self, kubectl: Kubectl, folder: Path) -> None:
        self._folder, self._namespace = folder, kubectl.namespace
        config = yaml.safe_load(Path(kubectl.kubeconfig).read_text())["clusters"][0]["cluster"]
        self._server = urlparse(config["server"])
        data = config.get("certificate-authority-data")
        ca = base64.b64decode(data) if data else Path(config["certificate-authority"]).read_bytes()
        (folder / "ca.crt").write_bytes(ca)
        (folder / "token").write_text(kubectl("create", "token", "driver").strip())
        job = yaml.safe_load((ROOT / "examples/quickstart.yaml").read_text())
        del job["spec"]["data"]["prepare"]  # nothing is trained here
        (folder / "job.yaml").write_text(yaml.safe_dump(job))
        self.started: list[subprocess.Popen[str]] = []

    def start(self, attempt: int, incarnation: str) -> subprocess.Popen[str]:
        env = os.environ | {
            "KUBERNETES_SERVICE_HOST": str(self._server.hostname), "KUBERNETES_SERVICE_PORT": str(self._server.port),
            "RLJOB_NAME": "demo", "RLJOB_NAMESPACE": self._namespace, "RLJOB_LEASE": "demo-driver",
            "RLJOB_PROGRESS_CONFIGMAP": "demo-progress", "PYTHONPATH": str(ROOT),
        }  # fmt: skip
        command = [
            sys.executable, str(Path(__file__).with_name("committing_driver.py")),
            str(self._folder / "token"), str(self._folder / "ca.crt"),
            "--job", str(self._folder / "job.yaml"), "--dir", str(self._folder / "job"),
            "--attempt", str(attempt), "--incarnation", incarnation,
        ]  # fmt: skip
        process = subprocess.Popen(command, env=env, stderr=subprocess.PIPE, text=True)
        self.started.append(process)
        return process


@pytest.fixture
def drivers(kubectl: Kubectl, tmp_path: Path) -> Iterator[Drivers]:
    all_of_them = Drivers(kubectl, tmp_path)
    yield all_of_them
    for process in all_of_them.started:
        if process.poll() is None:
            process.kill()
            process.wait(timeout=30)


def reported(kubectl: Kubectl) -> dict[str, Any]:
    data = kubectl.get("configmap", "demo-progress").get("data") or {}
    found: dict[str, Any] = json.loads(data.get("progress.json", "{}"))
    return found


def committed(folder: Path) -> list[str]:
    """Commits of the old driver."""
    found = (folder / "job/attempts/0001-aaaaaaaa/commits").iterdir()
    return sorted(path.name for path in found if not path.name.startswith("."))


def test_an_old_driver_that_wakes_up_writes_nothing(kubectl: Kubectl, drivers: Drivers, tmp_path: Path) -> None:
    old = drivers.start(1, "0001-aaaaaaaa")
    wait_for("the old driver's commits", lambda: reported(kubectl).get("step", 0) >= 3, seconds=90, every=0.2)

    old.send_signal(signal.SIGSTOP)  # the node freezes; the operator has given the attempt up
    kubectl("annotate", "lease", "demo-driver", "rljob.io/attempt=2", "--overwrite")
    new = drivers.start(2, "0002-bbbbbbbb")
    wait_for("the new driver's commits", lambda: reported(kubectl).get("attempt") == 2, seconds=90, every=0.2)
    wait_for("the new driver's steps", lambda: reported(kubectl).get("step", 0) >= 3, seconds=90, every=0.2)
    before = committed(tmp_path)

    old.send_signal(signal.SIGCONT)
    assert old.wait(timeout=90) == 3
    assert "is for attempt 2; this driver is attempt 1" in (old.stderr.read() if old.stderr else "")
    # A commit that was half written when it froze may become whole, beneath its own directory; none is begun.
    assert len(committed(tmp_path)) <= len(before) + 1
    assert reported(kubectl)["attempt"] == 2

    assert new.poll() is None, "the new one is not disturbed"
    step = reported(kubectl)["step"]
    wait_for("the new driver goes on", lambda: reported(kubectl)["step"] > step, seconds=60, every=0.2)
    new.terminate()
    assert new.wait(timeout=60) == 4
    assert (reported(kubectl)["attempt"], reported(kubectl)["state"]) == (2, "Suspended")
    assert kubectl.get("lease", "demo-driver")["spec"].get("holderIdentity") is None
