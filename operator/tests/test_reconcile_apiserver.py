"""The operator's process against a real apiserver: what only the real one can refuse, default, merge or watch."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from e2e.conftest import installed_crd, kubeconfig  # noqa: F401 - fixtures
from e2e.support.kubectl import Kubectl, KubectlError
from e2e.support.wait import wait_for
from tests.conftest import job_manifest

pytestmark = [pytest.mark.cluster, pytest.mark.slow]
GOLDEN = Path(__file__).parent / "golden"
CHILDREN = "serviceaccounts,roles,rolebindings,configmaps,leases,persistentvolumeclaims,rayjobs,deployments,services"


class Operator:
    """`python -m rljob_operator`, for one namespace."""

    def __init__(self, path: str, namespace: str) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self._command = [
            sys.executable, "-m", "rljob_operator", "--watch-namespaces", namespace, "--port", str(self.port),
            "--log-format", "plain", "--trainer-image", "example.invalid/trainer:none",
        ]  # fmt: skip
        self._env = os.environ | {"KUBECONFIG": path}
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        self._process = subprocess.Popen(self._command, env=self._env)
        wait_for("operator ready", lambda: self.get("/readyz") is not None, seconds=60, every=0.2)

    def kill(self) -> None:
        self._end(signal.SIGKILL)

    def stop(self) -> int:
        return self._end(signal.SIGTERM)

    def _end(self, number: int) -> int:
        if self._process is None:
            return 0
        self._process.send_signal(number)
        code = self._process.wait(timeout=30)
        self._process = None
        return code

    def get(self, path: str) -> str | None:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}{path}", timeout=5) as answer:
                return answer.read().decode()
        except (urllib.error.URLError, ConnectionError):
            return None


@pytest.fixture(scope="module")
def kubectl(installed_crd: Kubectl) -> Iterator[Kubectl]:  # noqa: F811
    client = Kubectl(installed_crd.kubeconfig, f"operator-{uuid.uuid4().hex[:8]}")
    client("create", "namespace", client.namespace)
    yield client
    client("delete", "rljobs", "--all", "--wait=false")
    client("delete", "namespace", client.namespace, "--wait=false")


@pytest.fixture(scope="module")
def operator(kubectl: Kubectl) -> Iterator[Operator]:
    process = Operator(kubectl.kubeconfig, kubectl.namespace)
    process.start()
    yield process
    process.stop()


def manifest(kubectl: Kubectl, name: str, **spec: object) -> str:
    body = job_manifest(name, **spec)
    body["metadata"]["namespace"] = kubectl.namespace
    # No kubelet here makes a retriever ready.
    del body["spec"]["retriever"]
    body["spec"]["rollout"]["generate"] = {"type": "single_turn"}
    return yaml.safe_dump(body)


def status(kubectl: Kubectl, name: str) -> dict:
    return kubectl.get("rljob", name).get("status") or {}


def wait_phase(kubectl: Kubectl, name: str, phase: str) -> dict:
    wait_for(f"{name} {phase}", lambda: status(kubectl, name).get("phase") == phase, seconds=60, every=0.2)
    return status(kubectl, name)


def head(kubectl: Kubectl, name: str, attempt: int = 1) -> None:
    """A head pod as KubeRay makes it, never scheduled: an attempt that runs has one."""
    wait_for("RayJob", lambda: kubectl.names(f"rayjob/{name}-{attempt}"), seconds=30, every=0.1)
    ray_job = kubectl.get("rayjob", f"{name}-{attempt}")
    template = ray_job["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]
    owner = {key: ray_job["metadata"][key] for key in ("name", "uid")}
    owner |= {"apiVersion": "ray.io/v1", "kind": "RayJob"}
    labels = template["metadata"]["labels"]
    metadata = {"name": f"{name}-{attempt}-test-head", "labels": labels, "ownerReferences": [owner]}
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": metadata}
    kubectl.apply(yaml.safe_dump(pod | {"spec": template["spec"] | {"schedulerName": "nobody"}}))


def report(kubectl: Kubectl, name: str, **progress: Any) -> None:
    """The driver's write, as the driver: by its own account, so that its Role is tried too."""
    attempt = progress.get("attempt", 1)
    if not kubectl.names(f"pod/{name}-{attempt}-test-head"):
        head(kubectl, name, attempt)
    base = {"attempt": 1, "stage": "RL", "step": 3, "totalSteps": 10, "state": "Running", "exitCode": None}
    body = json.dumps({"data": {"progress.json": json.dumps(base | progress)}})
    account = f"system:serviceaccount:{kubectl.namespace}:{name}-driver"
    kubectl("patch", "configmap", f"{name}-progress", "--type=merge", "-p", body, f"--as={account}")


@pytest.mark.parametrize("case", ["demo", "full", "sft-only"])
def test_rendered_objects_pass_strict_validation(kubectl, case):
    objects = list(yaml.safe_load_all((GOLDEN / f"{case}.yaml").read_text()))
    for obj in objects:
        obj["metadata"]["namespace"] = kubectl.namespace
        del obj["metadata"]["ownerReferences"]
    kubectl(
        "apply", "--server-side", "--dry-run=server", "--validate=strict", "-f", "-", stdin=yaml.safe_dump_all(objects)
    )


def test_rendered_pods_pass_the_restricted_standard(kubectl):
    """The namespace policy `restricted` warns about nothing in our pods."""
    spec = next(o for o in yaml.safe_load_all((GOLDEN / "demo.yaml").read_text()) if o["kind"] == "RayJob")["spec"]
    groups = [spec["rayClusterSpec"]["headGroupSpec"], *spec["rayClusterSpec"]["workerGroupSpecs"]]
    kubectl("label", "namespace", kubectl.namespace, "pod-security.kubernetes.io/enforce=restricted", "--overwrite")
    kubectl("create", "serviceaccount", "demo-driver")
    try:
        for index, group in enumerate(groups):
            template = group["template"]
            pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": f"p{index}"}, "spec": template["spec"]}
            kubectl("apply", "--dry-run=server", "-f", "-", stdin=yaml.safe_dump(pod))
    finally:
        kubectl("delete", "serviceaccount", "demo-driver")
        kubectl("label", "namespace", kubectl.namespace, "pod-security.kubernetes.io/enforce-")


def test_a_jobs_way(kubectl, operator):
    kubectl.apply(manifest(kubectl, "way"))
    wait_for("RayJob", lambda: kubectl.names("rayjob/way-1"), seconds=30, every=0.1)
    started = wait_phase(kubectl, "way", "Starting")
    assert started["attempts"][0]["rayJob"] == "way-1"

    report(kubectl, "way", reward=0.5, lastCommit={"name": "0001-ab/commits/step-000002", "step": 2})
    running = wait_phase(kubectl, "way", "Running")
    assert (running["progress"], running["reward"], running["lastCommit"]["step"]) == ("3/10", "0.5", 2)
    assert {c["observedGeneration"] for c in running["conditions"]} == {1}

    account = f"--as=system:serviceaccount:{kubectl.namespace}:way-driver"
    for verb, what, allowed in [
        ("patch", "configmaps/way-progress", True), ("get", "configmaps/way-control", True),
        ("update", "leases.coordination.k8s.io/way-driver", True), ("patch", "configmaps/way-config", False),
        ("create", "configmaps", False), ("patch", "configmaps/way-control", False), ("get", "secrets", False),
        ("get", "pods", False), ("delete", "leases.coordination.k8s.io/way-driver", False),
    ]:  # fmt: skip
        answer = subprocess.run(
            ["kubectl", "-n", kubectl.namespace, "auth", "can-i", verb, what, account],
            capture_output=True, text=True, timeout=30, check=False,
            env=os.environ | {"KUBECONFIG": kubectl.kubeconfig},
        ).stdout.strip()  # fmt: skip
        assert answer == ("yes" if allowed else "no"), f"{verb} {what}"

    report(kubectl, "way", step=10, stage="Done", state="Succeeded", exitCode=0)
    wait_phase(kubectl, "way", "Succeeded")
    kubectl("wait", "rljob/way", "--for=condition=Complete", "--timeout=10s")
    reasons = {e["reason"] for e in kubectl.items("events", "--field-selector=involvedObject.name=way")}
    assert {"AttemptStarted", "Training", "Succeeded"} <= reasons
    assert "rljob_operator_reconcile_total" in (operator.get("/metrics") or "")
    assert 'rljob_operator_jobs{phase="Succeeded"} 1.0' in (operator.get("/metrics") or "")


def test_nothing_is_written_when_nothing_changes(kubectl, operator):
    kubectl.apply(manifest(kubectl, "still"))
    wait_phase(kubectl, "still", "Starting")
    report(kubectl, "still")
    wait_phase(kubectl, "still", "Running")

    def versions() -> dict[str, str]:
        found = kubectl.items(f"{CHILDREN}", "-l", "rljob.io/job=still")
        found = [o for o in found if o["kind"] != "RayJob"]  # KubeRay, where it runs, writes those
        return {f"{o['kind']}/{o['metadata']['name']}": o["metadata"]["resourceVersion"] for o in found}

    def reconciles() -> float:
        lines = (operator.get("/metrics") or "").splitlines()
        return sum(float(line.split()[-1]) for line in lines if line.startswith("rljob_operator_reconcile_total{"))

    time.sleep(1.5)
    before, job, count = versions(), kubectl.get("rljob", "still"), reconciles()
    kubectl("annotate", "rljob", "still", "look=here")
    wait_for("another look", lambda: reconciles() > count, seconds=20, every=0.2)
    time.sleep(1.5)
    after = kubectl.get("rljob", "still")
    assert versions() == before
    assert after["status"] == job["status"]
    managers = {
        m["manager"] for m in kubectl.get("--show-managed-fields", "rljob", "still")["metadata"]["managedFields"]
    }
    assert not any("kopf" in manager for manager in managers)
    assert set(after["metadata"]["annotations"]) <= {"look", "kubectl.kubernetes.io/last-applied-configuration"}


def test_children_deleted_or_changed_by_hand_come_back(kubectl, operator):
    kubectl.apply(manifest(kubectl, "healed"))
    wait_phase(kubectl, "healed", "Starting")
    kubectl("delete", "role/healed-driver", "configmap/healed-config", "lease/healed-driver")
    kubectl("patch", "rolebinding", "healed-driver", "--type=json", "-p", '[{"op":"remove","path":"/subjects"}]')
    kubectl("annotate", "rljob", "healed", "look=here")
    names = ("role/healed-driver", "configmap/healed-config", "lease/healed-driver")
    wait_for("children", lambda: len(kubectl.names(*names)) == 3, seconds=20)
    wait_for("subjects", lambda: kubectl.get("rolebinding", "healed-driver").get("subjects"), seconds=20)


def test_killed_operator_goes_on_where_it_was(kubectl, operator):
    kubectl.apply(manifest(kubectl, "restart"))
    operator.kill()
    operator.start()
    wait_for("RayJob", lambda: kubectl.names("rayjob/restart-1"), seconds=30)
    report(kubectl, "restart")
    operator.kill()
    report(kubectl, "restart", step=10, state="Succeeded", exitCode=0)
    operator.start()
    done = wait_phase(kubectl, "restart", "Succeeded")
    assert done["attempt"] == 1


def test_retry_resumes_from_the_commit(kubectl, operator):
    kubectl.apply(manifest(kubectl, "retry"))
    wait_phase(kubectl, "retry", "Starting")
    report(kubectl, "retry", state="Failed", exitCode=1, message="rank 0 died",
           lastCommit={"name": "0001-ab/commits/step-000003", "step": 3})  # fmt: skip
    wait_for("second RayJob", lambda: kubectl.names("rayjob/retry-2"), seconds=60)
    assert not kubectl.names("rayjob/retry-1")
    assert "--resume-from 0001-ab/commits/step-000003" in kubectl.get("rayjob", "retry-2")["spec"]["entrypoint"]
    assert kubectl.get("lease", "retry-driver")["metadata"]["annotations"]["rljob.io/attempt"] == "2"


def test_suspend_and_resume(kubectl, operator):
    kubectl.apply(manifest(kubectl, "pause"))
    wait_phase(kubectl, "pause", "Starting")
    report(kubectl, "pause")
    wait_phase(kubectl, "pause", "Running")
    kubectl("patch", "rljob", "pause", "--type=merge", "-p", '{"spec":{"lifecycle":{"suspend":true}}}')
    wait_phase(kubectl, "pause", "Suspending")
    assert json.loads(kubectl.get("configmap", "pause-control")["data"]["request.json"])["suspend"] is True
    report(kubectl, "pause", step=4, state="Suspended", exitCode=4, lastCommit={"name": "0001-ab/commits/s", "step": 4})
    wait_phase(kubectl, "pause", "Suspended")
    assert not kubectl.names("rayjobs", "-l", "rljob.io/job=pause")
    kubectl("patch", "rljob", "pause", "--type=merge", "-p", '{"spec":{"lifecycle":{"suspend":false}}}')
    wait_for("second RayJob", lambda: kubectl.names("rayjob/pause-2"), seconds=30)
    assert status(kubectl, "pause").get("failedAttempts") == 0


def test_a_finished_job_goes_with_all_that_is_its_after_its_time_to_live(kubectl, operator):
    kubectl.apply(manifest(kubectl, "short", lifecycle={"ttlSecondsAfterFinished": 2}))
    wait_phase(kubectl, "short", "Starting")
    report(kubectl, "short", step=10, state="Succeeded", exitCode=0)
    wait_for("no RLJob", lambda: not kubectl.names("rljob/short"), seconds=60, every=0.2)
    wait_for("nothing left", lambda: not kubectl.names(f"{CHILDREN},pods", "-l", "rljob.io/job=short"), seconds=60)


def test_a_job_that_is_active_for_too_long_fails_and_gives_its_pods_back(kubectl, operator):
    kubectl.apply(manifest(kubectl, "late", lifecycle={"activeDeadlineSeconds": 600}))
    wait_phase(kubectl, "late", "Starting")
    report(kubectl, "late", lastCommit={"name": "0001-ab/commits/step-000002", "step": 2})
    wait_phase(kubectl, "late", "Running")
    kubectl("patch", "rljob", "late", "--type=merge", "-p", '{"spec": {"lifecycle": {"activeDeadlineSeconds": 1}}}')
    failed = wait_phase(kubectl, "late", "Failed")
    attempt = failed["attempts"][0]
    assert (attempt["reason"], attempt["endStep"], attempt["committedStep"]) == ("DeadlineExceeded", 3, 2)
    wait_for("no RayJob", lambda: not kubectl.names("rayjobs", "-l", "rljob.io/job=late"), seconds=30)


def test_kubectl_scale_reaches_the_cluster_and_takes_drained_pods_away(kubectl, operator):
    kubectl.apply(manifest(kubectl, "wide"))
    wait_phase(kubectl, "wide", "Starting")
    ray_job = kubectl.get("rayjob", "wide-1")
    owner = {"apiVersion": "ray.io/v1", "kind": "RayJob", "controller": True, "blockOwnerDeletion": True}
    owner |= {key: ray_job["metadata"][key] for key in ("name", "uid")}
    labels = ray_job["metadata"]["labels"]
    cluster = {"apiVersion": "ray.io/v1", "kind": "RayCluster", "spec": ray_job["spec"]["rayClusterSpec"]}
    cluster["metadata"] = {"name": "wide-1-abcde", "labels": labels, "ownerReferences": [owner]}
    kubectl("create", "-f", "-", stdin=yaml.safe_dump(cluster))
    body = json.dumps({"status": {"rayClusterName": "wide-1-abcde", "jobDeploymentStatus": "Running"}})
    kubectl("patch", "rayjob", "wide-1", "--subresource=status", "--type=merge", "-p", body)
    report(kubectl, "wide", engines={"serving": ["wide-a"], "drained": []})
    wait_phase(kubectl, "wide", "Running")

    def rollout() -> dict:
        groups = kubectl.get("raycluster", "wide-1-abcde")["spec"]["workerGroupSpecs"]
        return next(group for group in groups if group["groupName"] == "rollout")

    kubectl("scale", "rljob/wide", "--replicas=2")
    wait_for("two replicas", lambda: rollout()["replicas"] == 2, seconds=30, every=0.2)
    template = rollout()["template"]
    for name in ("wide-a", "wide-b"):
        pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "labels": template["metadata"]["labels"]}}
        kubectl.apply(yaml.safe_dump(pod | {"spec": template["spec"] | {"schedulerName": "nobody"}}))

    kubectl("scale", "rljob/wide", "--replicas=1")

    def drain() -> list:
        return json.loads(kubectl.get("configmap", "wide-control")["data"]["request.json"]).get("drain") or []

    assert wait_for("a pod to drain", drain, seconds=30, every=0.2) == ["wide-b"], "the one that serves nothing"
    assert rollout()["replicas"] == 2
    report(kubectl, "wide", engines={"serving": ["wide-a"], "drained": ["wide-b"]})
    wait_for("one replica", lambda: rollout()["replicas"] == 1, seconds=30, every=0.2)
    assert rollout()["scaleStrategy"] == {"workersToDelete": ["wide-b"]}


def test_delete_in_the_middle_leaves_nothing(kubectl, operator):
    kubectl.apply(manifest(kubectl, "gone", code={"files": {"a.py": "X = 1\n"}}))
    wait_phase(kubectl, "gone", "Starting")
    assert kubectl.names("configmap/gone-code")
    kubectl("delete", "rljob", "gone", "--timeout=60s", seconds=70)
    wait_for("nothing left", lambda: not kubectl.names(CHILDREN, "-l", "rljob.io/job=gone"), seconds=60)


def test_foreign_object_is_left_alone(kubectl, operator):
    kubectl("create", "configmap", "taken-config", "--from-literal=keep=me")
    kubectl.apply(manifest(kubectl, "taken"))
    wait_for("conflict", lambda: "taken-config" in status(kubectl, "taken").get("message", ""), seconds=30)
    assert kubectl.get("configmap", "taken-config")["data"] == {"keep": "me"}


def test_the_retriever_is_scaled_by_its_autoscaler_alone(kubectl, operator):
    name, deployment = "searched", "searched-retriever"
    body = job_manifest(name)
    body["metadata"]["namespace"] = kubectl.namespace
    body["spec"]["data"].pop("prepare", None)
    body["spec"]["retriever"] |= {"autoscaling": {"minReplicas": 2, "maxReplicas": 6}}
    body["spec"]["retriever"]["index"]["build"] = "Never"  # nothing to prepare: no kubelet would

    def replicas() -> int | None:
        return kubectl.get("deployment", deployment)["spec"].get("replicas")

    def change(**spec: object) -> None:
        kubectl("patch", "rljob", name, "--type=merge", "-p", json.dumps({"spec": spec}))

    kubectl.apply(yaml.safe_dump(body))
    wait_for("the autoscaler", lambda: kubectl.names(f"horizontalpodautoscaler/{deployment}"), seconds=90, every=0.2)
    assert kubectl.names(f"poddisruptionbudget/{deployment}")
    kubectl("scale", "deployment", deployment, "--replicas=4")
    change(lifecycle={"backoffLimit": 9})
    wait_for("four", lambda: status(kubectl, name).get("retriever", {}).get("desired") == 4, seconds=90, every=0.2)
    assert replicas() == 4

    change(lifecycle={"suspend": True})
    wait_for("none", lambda: replicas() == 0, seconds=90, every=0.2)
    change(lifecycle={"suspend": False})
    wait_for("some again, which the autoscaler takes up", replicas, seconds=90, every=0.2)

    change(retriever={"autoscaling": None, "replicas": 1})
    wait_for("no autoscaler", lambda: not kubectl.names(f"horizontalpodautoscaler/{deployment}"), seconds=90, every=0.2)
    assert not kubectl.names(f"poddisruptionbudget/{deployment}")
    kubectl("delete", "rljob", name, "--wait=false")


def test_a_patch_as_large_as_etcd_stores_is_refused_and_holds_nobody_up(kubectl, operator):
    env = [{"name": f"variable{i}", "value": "x"} for i in range(33_000)]
    patch = {"spec": {"containers": [{"name": "ray-worker", "env": env}]}}
    body = yaml.safe_load(manifest(kubectl, "large"))
    body["spec"]["rollout"]["pod"] = {"podTemplatePatch": patch}
    assert len(json.dumps(body)) > 1_200_000
    kubectl("create", "-f", "-", stdin=json.dumps(body))
    kubectl.apply(manifest(kubectl, "beside"))
    wait_phase(kubectl, "beside", "Starting")
    wait_for("a verdict", lambda: status(kubectl, "large").get("conditions"), seconds=60, every=0.2)
    (accepted,) = [its for its in status(kubectl, "large")["conditions"] if its["type"] == "Accepted"]
    assert (accepted["status"], accepted["reason"]) == ("False", "InvalidSpec")
    assert accepted["message"].startswith("spec.rollout.pod.podTemplatePatch: has more than 10000 entries")
    kubectl("delete", "rljob", "large", "beside", "--wait=false")


def test_a_free_form_map_has_a_bound_at_admission(kubectl):
    """The CRD's bound is looser than the operator's, which a condition reports."""
    body = yaml.safe_load(manifest(kubectl, "at-the-bound"))
    body["spec"]["rollout"]["engineArgs"] = {f"k{i}": 1 for i in range(1024)}
    kubectl("create", "--dry-run=server", "-f", "-", stdin=json.dumps(body))
    body["spec"]["rollout"]["engineArgs"]["one more"] = 1
    with pytest.raises(KubectlError, match=r"spec\.rollout\.engineArgs: Too many: 1025: must have at most 1024 items"):
        kubectl("create", "--dry-run=server", "-f", "-", stdin=json.dumps(body))


def test_terminates_cleanly(operator):
    assert operator.get("/healthz") is not None
    assert operator.stop() == 0
