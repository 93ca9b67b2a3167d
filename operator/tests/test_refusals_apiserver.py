"""What a real apiserver refuses of a job: a quota, a claim that somebody has expanded, a class that does not expand."""

import json
import uuid
from collections.abc import Iterator

import pytest
import yaml

from e2e.conftest import installed_crd, kubeconfig  # noqa: F401 - fixtures
from e2e.support.kubectl import Kubectl, KubectlError
from e2e.support.wait import wait_for
from tests.test_reconcile_apiserver import kubectl, manifest, operator, report, status, wait_phase  # noqa: F401

pytestmark = [pytest.mark.cluster, pytest.mark.slow]


def applied(kubectl: Kubectl, name: str) -> dict[str, str]:  # noqa: F811
    conditions = status(kubectl, name).get("conditions") or []
    return next((c for c in conditions if c["type"] == "ResourcesApplied"), {})


def refused(kubectl: Kubectl, name: str, words: str) -> None:  # noqa: F811
    """Wait for the condition and the Event with the apiserver's words."""
    wait_for(f"{words!r} in the condition", lambda: words in applied(kubectl, name).get("message", ""), seconds=60)
    assert (applied(kubectl, name)["status"], applied(kubectl, name)["reason"]) == ("False", "ChildRefused")

    def event() -> bool:
        found = kubectl.items("events", f"--field-selector=involvedObject.name={name},reason=ChildRefused")
        return any(e["type"] == "Warning" and words in e["message"] for e in found)

    wait_for("the Event", event, seconds=20)


def set_spec(kubectl: Kubectl, name: str, **spec: object) -> None:  # noqa: F811
    kubectl("patch", "rljob", name, "--type=merge", "-p", json.dumps({"spec": spec}))


def suspended(kubectl: Kubectl, name: str) -> None:  # noqa: F811
    """A suspend is asked of the driver, and is done."""
    set_spec(kubectl, name, lifecycle={"suspend": True})

    def asked() -> bool:
        data = kubectl.get("configmap", f"{name}-control")["data"]
        return json.loads(data["request.json"])["suspend"] is True

    wait_for("the request", asked, seconds=60)
    report(kubectl, name, step=4, state="Suspended", exitCode=4, lastCommit={"name": "0001-ab/commits/s", "step": 4})
    wait_phase(kubectl, name, "Suspended")


@pytest.fixture
def storage(kubectl: Kubectl) -> Iterator[tuple[str, str]]:  # noqa: F811
    """Two classes without a provisioner: one whose claims may be expanded, one whose claims may not."""
    tag = uuid.uuid4().hex[:8]
    names = (f"grows-{tag}", f"fixed-{tag}")
    for name, grows in zip(names, (True, False), strict=True):
        body = {"apiVersion": "storage.k8s.io/v1", "kind": "StorageClass", "metadata": {"name": name}}
        kubectl.apply(yaml.safe_dump(body | {"provisioner": "example.org/none", "allowVolumeExpansion": grows}))
    yield names
    kubectl("delete", "persistentvolumes", "-l", f"tried={tag}", "--wait=false")
    kubectl("delete", "storageclass", *names)


def bind(kubectl: Kubectl, claim: str, storage_class: str) -> None:  # noqa: F811
    """A volume of 1 GiB for the claim."""
    wait_for("the claim", lambda: kubectl.names(f"pvc/{claim}"), seconds=30, every=0.2)
    labels = {"tried": storage_class.rpartition("-")[2]}
    volume = {
        "apiVersion": "v1", "kind": "PersistentVolume",
        "metadata": {"name": f"{claim}-{storage_class}", "labels": labels},
        "spec": {
            "capacity": {"storage": "1Gi"}, "accessModes": ["ReadWriteOnce"], "storageClassName": storage_class,
            "claimRef": {"namespace": kubectl.namespace, "name": claim},
            "csi": {"driver": "example.org", "volumeHandle": claim},
        },
    }  # fmt: skip
    kubectl.apply(yaml.safe_dump(volume))
    wait_for("bound", lambda: kubectl.get("pvc", claim)["status"].get("phase") == "Bound", seconds=60, every=0.2)


def size(kubectl: Kubectl, claim: str) -> str:  # noqa: F811
    return str(kubectl.get("pvc", claim)["spec"]["resources"]["requests"]["storage"])


def test_a_quota_that_is_full_is_told_and_the_job_goes_on_once_it_is_raised(kubectl, operator):  # noqa: F811
    kubectl("create", "quota", "none", "--hard=persistentvolumeclaims=0")
    try:
        wait_for("the quota", lambda: kubectl.get("quota", "none").get("status", {}).get("hard"), seconds=60)
        kubectl.apply(manifest(kubectl, "poor"))
        refused(kubectl, "poor", "exceeded quota: none")
        said = status(kubectl, "poor")
        assert (said["phase"], said.get("attempt", 0)) == ("Pending", 0)
        assert "exceeded quota: none" in said["message"]
        assert kubectl.names("configmap/poor-config"), "all else is made"
        assert not kubectl.names("rayjobs", "-l", "rljob.io/job=poor")

        kubectl("patch", "quota", "none", "--type=merge", "-p", '{"spec":{"hard":{"persistentvolumeclaims":"9"}}}')
        wait_for("RayJob", lambda: kubectl.names("rayjob/poor-1"), seconds=120, every=0.5)
        wait_for("the condition", lambda: applied(kubectl, "poor").get("status") == "True", seconds=30)
    finally:
        kubectl("delete", "quota", "none")
    report(kubectl, "poor", step=10, stage="Done", state="Succeeded", exitCode=0)
    assert wait_phase(kubectl, "poor", "Succeeded")["attempt"] == 1


def test_a_claim_that_is_expanded_stays_so_and_grows_with_the_spec(kubectl, operator, storage):  # noqa: F811
    claim = {"size": "1Gi", "storageClassName": storage[0], "accessModes": ["ReadWriteOnce"]}
    kubectl.apply(manifest(kubectl, "full", storage=claim))
    bind(kubectl, "full-data", storage[0])
    report(kubectl, "full")
    wait_phase(kubectl, "full", "Running")
    kubectl("patch", "pvc", "full-data", "-p", '{"spec":{"resources":{"requests":{"storage":"2Gi"}}}}')
    suspended(kubectl, "full")
    assert size(kubectl, "full-data") == "2Gi"
    assert applied(kubectl, "full")["status"] == "True"

    set_spec(kubectl, "full", storage={"size": "3072Mi"})
    wait_for("3 GiB", lambda: size(kubectl, "full-data") in ("3Gi", "3072Mi"), seconds=60, every=0.2)
    with pytest.raises(KubectlError, match="may grow, not shrink, once the job has started: it is 3072Mi, not 2Gi"):
        set_spec(kubectl, "full", storage={"size": "2Gi"})

    set_spec(kubectl, "full", lifecycle={"suspend": False})
    wait_for("RayJob", lambda: kubectl.names("rayjob/full-2"), seconds=60, every=0.2)
    report(kubectl, "full", attempt=2, step=10, stage="Done", state="Succeeded", exitCode=0)
    wait_phase(kubectl, "full", "Succeeded")


def test_a_growth_that_the_class_does_not_allow_is_told_and_the_job_goes_on(kubectl, operator, storage):  # noqa: F811
    claim = {"size": "1Gi", "storageClassName": storage[1], "accessModes": ["ReadWriteOnce"]}
    kubectl.apply(manifest(kubectl, "tight", storage=claim))
    bind(kubectl, "tight-data", storage[1])
    report(kubectl, "tight")
    wait_phase(kubectl, "tight", "Running")
    set_spec(kubectl, "tight", storage={"size": "2Gi"})
    refused(kubectl, "tight", "must support resize")
    report(kubectl, "tight", step=10, stage="Done", state="Succeeded", exitCode=0)
    wait_phase(kubectl, "tight", "Succeeded")
