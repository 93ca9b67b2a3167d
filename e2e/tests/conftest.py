"""The operator installed by Helm on a real cluster, a namespace for each test, and what to keep when one fails."""

import os
import subprocess
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from e2e.support.diagnose import collect
from e2e.support.kubectl import Kubectl
from e2e.support.shared import folder_of_run, shared
from e2e.support.wait import wait_for

ROOT = Path(__file__).resolve().parents[2]
RELEASE = "rljob"
SYSTEM = "rljob-system"
_REGISTRY, _TAG = os.environ.get("RLJOB_E2E_REGISTRY", "rljob"), os.environ.get("RLJOB_E2E_TAG", "dev")
IMAGES = {"trainer": f"{_REGISTRY}/trainer-cpu:{_TAG}", "retriever": f"{_REGISTRY}/retriever:{_TAG}"}


def helm(kubeconfig: str, *arguments: str, seconds: float = 180) -> str:
    """Output of a helm command. Raises AssertionError with helm's message."""
    done = subprocess.run(
        ["helm", *arguments],
        capture_output=True,
        text=True,
        timeout=seconds,
        check=False,
        env=os.environ | {"KUBECONFIG": kubeconfig},
    )
    assert done.returncode == 0, f"helm {' '.join(arguments)}: {done.stderr.strip()}"
    return done.stdout


@pytest.fixture(scope="session")
def system(kubeconfig: str) -> Kubectl:
    """kubectl in the operator's namespace."""
    return Kubectl(kubeconfig, SYSTEM)


@pytest.fixture(scope="session")
def installed_operator(kubeconfig: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The release name of an operator installed by Helm, ready; one for all processes of the run."""
    values = {"image": {"repository": f"{_REGISTRY}/operator", "tag": _TAG}, "jobs": {"images": IMAGES}}

    def install() -> None:
        helm(
            kubeconfig,
            "upgrade", "--install", RELEASE, str(ROOT / "charts/rljob"),
            "--namespace", SYSTEM, "--create-namespace", "--take-ownership", "--wait", "--timeout", "120s",
            "--values", _write_values(tmp_path_factory.mktemp("helm"), values),
        )  # fmt: skip

    def uninstall() -> None:
        helm(kubeconfig, "uninstall", RELEASE, "--namespace", SYSTEM, "--wait", "--timeout", "120s")

    with shared(folder_of_run(tmp_path_factory), "operator", install, uninstall):
        yield RELEASE


def _write_values(folder: Path, values: dict[str, object]) -> str:
    path = folder / "values.yaml"
    path.write_text(yaml.safe_dump(values))
    return str(path)


@pytest.fixture
def kubectl(kubeconfig: str, system: Kubectl, request: pytest.FixtureRequest) -> Iterator[Kubectl]:
    """kubectl in a namespace of the test's own, which is gone afterwards; a failed test leaves its diagnosis."""
    namespace = f"e2e-{uuid.uuid4().hex[:8]}"
    client = Kubectl(kubeconfig, namespace)
    client("create", "namespace", namespace)
    # Every pod of every job has to be admitted by the strictest standard.
    client("label", "namespace", namespace, "pod-security.kubernetes.io/enforce=restricted")
    failed_before = request.session.testsfailed
    yield client
    if request.session.testsfailed > failed_before:
        collect(request.node.name, client, system)
    client("delete", "rljobs", "--all", "--timeout=240s", seconds=250)
    client("delete", "namespace", namespace, "--wait=false")
    wait_for(f"namespace {namespace} gone", lambda: not client.names("namespace", namespace), seconds=120)
