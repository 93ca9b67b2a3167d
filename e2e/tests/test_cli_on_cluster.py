"""`rljob` against a real apiserver."""

import json
import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from e2e.support.kubectl import Kubectl
from e2e.tests.corpus import good

pytestmark = pytest.mark.cluster
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def kubectl(installed_crd: Kubectl) -> Iterator[Kubectl]:
    """A namespace without an operator's attention for the job."""
    namespace = f"cli-{uuid.uuid4().hex[:8]}"
    client = Kubectl(installed_crd.kubeconfig, namespace)
    client("create", "namespace", namespace)
    yield client
    client("delete", "rljobs", "--all", "--wait=false")
    client("delete", "namespace", namespace, "--wait=false")


@pytest.fixture
def manifest(tmp_path: Path) -> str:
    path = tmp_path / "job.json"
    path.write_text(json.dumps(good("cpu")))
    return str(path)


def rljob(kubectl: Kubectl, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "rljob_cli", *arguments, "-n", kubectl.namespace],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env={"KUBECONFIG": kubectl.kubeconfig, "PATH": "/usr/bin:/bin", "HOME": "/nonexistent"},
    )


def test_a_dry_run_stores_nothing(kubectl: Kubectl, manifest: str) -> None:
    done = rljob(kubectl, "submit", manifest, "--dry-run", "server")
    assert done.returncode == 0, done.stderr
    assert "is accepted (dry run)" in done.stdout
    assert kubectl.names("rljobs") == []


@pytest.mark.parametrize("example", sorted((ROOT / "examples").glob("*.yaml")), ids=lambda path: path.stem)
def test_the_apiserver_takes_every_example(kubectl: Kubectl, example: Path) -> None:
    overlays = sorted((ROOT / "examples/overlays").glob(f"{'-'.join(example.stem.split('-')[:2])}-*.yaml"))
    for overlay in ([], *(["--overlay", str(path)] for path in overlays)):
        done = rljob(kubectl, "submit", str(example), *overlay, "--dry-run", "server")
        assert done.returncode == 0, done.stderr
        assert "is accepted (dry run)" in done.stdout


def test_submit_status_suspend_resume(kubectl: Kubectl, manifest: str) -> None:
    for _ in range(2):  # Submitting again changes nothing.
        done = rljob(kubectl, "submit", manifest, "-o", "json")
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout)["phase"] == "Pending"
    assert json.loads(rljob(kubectl, "status", "-o", "json").stdout)["items"][0]["name"] == "good"
    assert rljob(kubectl, "suspend", "good").returncode == 0
    assert kubectl.get("rljob", "good")["spec"]["lifecycle"]["suspend"] is True
    assert rljob(kubectl, "resume", "good").returncode == 0
    assert kubectl.get("rljob", "good")["spec"]["lifecycle"]["suspend"] is False
    seen = json.loads(rljob(kubectl, "top", "-o", "json").stdout)
    assert (seen["items"][0]["name"], seen["totals"]["jobs"]) == ("good", 1)
    assert "1 jobs, 0 running" in rljob(kubectl, "top", "--once").stdout
    status = {"phase": "Succeeded", "attempt": 1, "progress": "20/20", "conditions": []}
    kubectl("patch", "rljob", "good", "--subresource=status", "--type=merge", "-p", json.dumps({"status": status}))
    shown = rljob(kubectl, "status", "good").stdout
    assert "Succeeded" in shown
    assert "20/20" in shown
    assert json.loads(rljob(kubectl, "top", "-o", "json").stdout)["items"] == []
    assert json.loads(rljob(kubectl, "top", "--finished", "-o", "json").stdout)["items"][0]["phase"] == "Succeeded"
    assert rljob(kubectl, "submit", manifest, "--wait").returncode == 0
    changed = rljob(kubectl, "submit", manifest, "--set", "spec.seed=7")
    assert changed.returncode == 2
    assert "cannot change once the job has started: it is 42, not 7" in " ".join(changed.stderr.split())


def test_what_is_not_there(kubectl: Kubectl, manifest: str) -> None:
    missing = rljob(kubectl, "status", "nope")
    assert (missing.returncode, "is not there" in missing.stderr) == (3, True)
    rljob(kubectl, "submit", manifest)
    silent = rljob(kubectl, "logs", "good")
    assert (silent.returncode, "no driver pods now" in silent.stderr) == (3, True)
    unread = rljob(kubectl, "report", "good")
    assert (unread.returncode, "has no pods, and nothing of it is left" in " ".join(unread.stderr.split())) == (3, True)
