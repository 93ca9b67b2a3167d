"""Who is there besides the two controllers: an administrator with a queue, users with jobs, drivers that report."""

import json
from pathlib import Path
from typing import Any

import yaml
from rljob_api.contract import names

from benchmarks.scale.cluster import Machine
from benchmarks.scale.jobs import STEPS, report, rl_job
from e2e.cluster import binaries
from e2e.cluster.run import run, say
from e2e.support.wait import wait_for

CHART = Path(__file__).resolve().parents[2] / "charts/rljob"
OPERATORS = "rljob:operators"
API = "kueue.x-k8s.io/v1beta2"
QUEUE, CLUSTER_QUEUE, FLAVOR = "team", "one-job", "kwok"
JOB = "job-00000"
LABEL = {"pool": "queued"}


def operate(machine: Machine) -> None:
    """Start the operator with the rights and the flag that the chart gives it for Kueue, and with no others."""
    chart = ["template", "rljob", CHART, "--set", "kueue.enabled=true", "--show-only", "templates/rbac.yaml"]
    rendered = run([binaries.program(machine.paths, "helm"), *chart]).stdout
    roles = [body for body in yaml.load_all(rendered, yaml.CSafeLoader) if body and "ClusterRole" in body["kind"]]
    for body in roles:
        if "subjects" in body:
            body["subjects"] = [{"apiGroup": "rbac.authorization.k8s.io", "kind": "Group", "name": OPERATORS}]
    machine.kubectl.apply(roles)
    machine.start_operator("--kueue=true", group=OPERATORS)


def administer(machine: Machine, priorities: dict[str, int]) -> None:
    """A ClusterQueue with quota for one job of 750m CPU, which preempts by priority, and priority classes."""
    quota = [{"name": "cpu", "nominalQuota": "1"}, {"name": "memory", "nominalQuota": "4Gi"}]
    groups = [{"coveredResources": ["cpu", "memory"], "flavors": [{"name": FLAVOR, "resources": quota}]}]
    spec = {
        "namespaceSelector": {},
        "queueingStrategy": "BestEffortFIFO",
        "preemption": {"withinClusterQueue": "LowerPriority"},
        "resourceGroups": groups,
    }
    machine.kubectl("label", "nodes", "--all", *(f"{key}={value}" for key, value in LABEL.items()))
    machine.kubectl.apply(
        [
            {"apiVersion": API, "kind": "ResourceFlavor", "metadata": {"name": FLAVOR}, "spec": {"nodeLabels": LABEL}},
            {"apiVersion": API, "kind": "ClusterQueue", "metadata": {"name": CLUSTER_QUEUE}, "spec": spec},
            *(
                {"apiVersion": API, "kind": "WorkloadPriorityClass", "metadata": {"name": name}, "value": value}
                for name, value in priorities.items()
            ),
        ]
    )


class User:
    """One job in a namespace of its own, with a LocalQueue, and its driver."""

    def __init__(self, machine: Machine, namespace: str) -> None:
        self.machine, self.kubectl, self.namespace = machine, machine.kubectl, namespace
        machine.namespace(namespace)
        metadata = {"name": QUEUE, "namespace": namespace}
        spec = {"clusterQueue": CLUSTER_QUEUE}
        machine.kubectl.apply([{"apiVersion": API, "kind": "LocalQueue", "metadata": metadata, "spec": spec}])

    # The user

    def submit(self, **queue: str) -> None:
        """Apply the job, into the queue."""
        body = rl_job(self.namespace, 0)
        body["spec"]["lifecycle"] = {"queue": {"name": QUEUE, **queue}}
        self.kubectl.apply([body])

    def change(self, **spec: Any) -> None:
        """Merge a change into the spec."""
        self._patch("rljob", JOB, {"spec": spec})

    # The driver

    def report(self, **progress: Any) -> None:
        """What the driver writes."""
        text = json.dumps(report(**progress))
        self._patch("configmap", names.progress(JOB), {"data": {"progress.json": text}})

    def runs(self, attempt: int = 1, **progress: Any) -> None:
        """The attempt has been admitted, its pods are ready, its driver has reported."""
        self.until(f"pods of attempt {attempt}", lambda: self.condition("ClusterReady")["status"] == "True")
        self.report(attempt=attempt, **progress)
        self.until("Running", lambda: self.status["phase"] == "Running")

    def succeeds(self, attempt: int = 1) -> None:
        """The driver has done all steps, and Ray says so to KubeRay."""
        self.report(attempt=attempt, step=STEPS, stage="Done", state="Succeeded", exitCode=0)
        (self.machine.finished / self.namespace).touch()
        self.until("Succeeded", lambda: self.status["phase"] == "Succeeded")

    # Looking

    @property
    def job(self) -> dict[str, Any]:
        """The RLJob."""
        return self.kubectl.get("-n", self.namespace, "rljob", JOB)

    @property
    def status(self) -> dict[str, Any]:
        """Its status."""
        return {"phase": "Pending", "attempts": [], **(self.job.get("status") or {})}

    def condition(self, kind: str) -> dict[str, Any]:
        """One condition; empty words when there is none."""
        found = [c for c in self.status.get("conditions", []) if c["type"] == kind]
        return found[0] if found else {"status": "", "reason": "", "message": ""}

    def of(self, kind: str) -> list[dict[str, Any]]:
        """Objects of a kind in the namespace."""
        items: list[dict[str, Any]] = self.kubectl.get("-n", self.namespace, kind)["items"]
        return items

    def ray_jobs(self) -> list[str]:
        """Names of the RayJobs that are there."""
        return [item["metadata"]["name"] for item in self.of("rayjobs")]

    def until(self, what: str, probe: Any, seconds: float = 90) -> None:
        """Wait for it. Raises TimeoutError with what the job says of itself."""
        try:
            wait_for(f"{self.namespace}: {what}", probe, seconds=seconds, every=0.3)
        except TimeoutError as error:
            self.machine.daemons.check()
            raise TimeoutError(f"{error}\n{json.dumps(self.status, indent=1)}") from error
        say(f"{self.namespace}: {what}")

    def _patch(self, kind: str, name: str, body: dict[str, Any]) -> None:
        self.kubectl("-n", self.namespace, "patch", kind, name, "--type=merge", "-p", json.dumps(body))
