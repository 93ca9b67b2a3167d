"""RLJobs in the tests: the examples, shortened; what their status says; and what is left of them."""

import copy
import json
from pathlib import Path
from typing import Any

import yaml

from e2e.support.kubectl import Kubectl
from e2e.support.wait import wait_for

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
JOB_LABEL = "rljob.io/job"
FINISHED = ("Succeeded", "Failed")
# Every kind that an RLJob may leave behind.
CHILD_KINDS = (
    "rayjobs,rayclusters,jobs,deployments,replicasets,services,pods,configmaps,"
    "serviceaccounts,roles,rolebindings,leases,persistentvolumeclaims,secrets"
)


def merge(base: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """`base` with `changes` laid over it, maps merged, everything else replaced."""
    result = copy.deepcopy(base)
    for key, value in changes.items():
        both = isinstance(value, dict) and isinstance(result.get(key), dict)
        result[key] = merge(result[key], value) if both else copy.deepcopy(value)
    return result


CPU_REQUEST = "50m"
"""Of each pod: on a node of two cores several jobs wait for one another more than they compute."""


def example(file: str, name: str, spec: dict[str, Any]) -> str:
    """The example as YAML under another name, its spec changed, its pods small enough to stand beside others."""
    manifest: dict[str, Any] = yaml.safe_load((EXAMPLES / file).read_text())
    manifest = merge(manifest, {"metadata": {"name": name}, "spec": spec})
    for section, pod in (("trainer", "pod"), ("trainer", "headPod"), ("rollout", "pod"), ("retriever", "pod")):
        if isinstance(found := manifest["spec"].get(section), dict):
            manifest["spec"][section] = merge(found, {pod: {"resources": {"requests": {"cpu": CPU_REQUEST}}}})
    return yaml.safe_dump(manifest, sort_keys=False, allow_unicode=True)


class Job:
    """One RLJob on the cluster."""

    def __init__(self, kubectl: Kubectl, name: str) -> None:
        self.kubectl = kubectl
        self.name = name
        self.phases: list[str] = []

    def status(self) -> dict[str, Any]:
        """The status, with the phases seen on the way recorded."""
        status: dict[str, Any] = self.kubectl.get("rljob", self.name).get("status") or {}
        phase = status.get("phase", "")
        if phase and (not self.phases or self.phases[-1] != phase):
            self.phases.append(phase)
        return status

    def condition(self, kind: str) -> dict[str, Any]:
        """One condition of the status; empty when there is none of the type."""
        return next((c for c in self.status().get("conditions", []) if c["type"] == kind), {})

    def wait_phase(self, *phases: str, seconds: float) -> dict[str, Any]:
        """The status once it is in one of `phases`; a job that failed instead is an error with its message."""

        def probe() -> dict[str, Any] | None:
            status = self.status()
            if status.get("phase") == "Failed" and "Failed" not in phases:
                raise AssertionError(f"{self.name} failed: {status.get('message')}; attempts: {status.get('attempts')}")
            return status if status.get("phase") in phases else None

        return wait_for(f"{self.name} in phase {' or '.join(phases)}", probe, seconds=seconds) or {}

    def wait_step(self, step: int, *, stage: str | None = None, seconds: float) -> dict[str, Any]:
        """The status once it reports at least `step` trained (in `stage`)."""

        def probe() -> dict[str, Any] | None:
            status = self.status()
            if status.get("phase") in FINISHED:
                raise AssertionError(f"{self.name} is {status['phase']} already: {status.get('message')}")
            there = status.get("step", 0) >= step and (stage is None or status.get("stage") == stage)
            return status if there else None

        return wait_for(f"{self.name} at step {step}", probe, seconds=seconds, every=0.5) or {}

    def pods(self, group: str | None = None) -> list[dict[str, Any]]:
        """Pods of the job, or in one role: head, trainer, rollout, retriever."""
        selector = f"{JOB_LABEL}={self.name}" + (f",rljob.io/role={group}" if group else "")
        return self.kubectl.items("pods", "-l", selector)

    def holding(self) -> list[str]:
        """Names of the pods that hold resources; one that has prepared the data stays, finished, for a while."""
        ended = ("Succeeded", "Failed")
        return [p["metadata"]["name"] for p in self.pods() if p.get("status", {}).get("phase") not in ended]

    def engines(self) -> list[str]:
        """Pods whose engines serve, as the driver reports them."""
        data = self.kubectl.get("configmap", f"{self.name}-progress").get("data") or {}
        engines = json.loads(data.get("progress.json", "{}")).get("engines") or {}
        pods: list[str] = engines.get("serving", [])
        return pods

    def generations(self) -> dict[str, tuple[str, int | None]]:
        """UID and generation of each object of the job's: neither changes unless somebody asks for something else. The
        Job that prepares is left out; it goes by its own time to live."""
        selector = f"{JOB_LABEL}={self.name},app.kubernetes.io/component!=prepare"
        return {
            f"{item['kind']}/{item['metadata']['name']}": (item["metadata"]["uid"], item["metadata"].get("generation"))
            for item in self.kubectl.items(CHILD_KINDS, "-l", selector)
        }

    def leftovers(self) -> list[str]:
        """Objects of the job that still exist."""
        return self.kubectl.names(CHILD_KINDS, "-l", f"{JOB_LABEL}={self.name}")
