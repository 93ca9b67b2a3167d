"""Blows against a running job, and how it comes out of them: in which attempt, how many steps lost, after how long."""

import contextlib
import json
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from e2e.support.jobs import Job
from e2e.support.kubectl import Kubectl
from e2e.support.wait import wait_for

OPERATOR_LABELS = "app.kubernetes.io/name=rljob-operator"
KUBERAY_LABELS = "app.kubernetes.io/component=kuberay-operator"


@dataclass(frozen=True)
class Recovery:
    """What a blow has cost."""

    blow: str
    step: int
    """Reported when it struck."""
    attempts: int
    """That it ended."""
    lost_steps: int
    """Trained, not committed, and trained again."""
    seconds: float
    """Until steps were reported that were trained afterwards. Reports come every five seconds, the second counts."""


def strike(
    job: Job, blow: str, action: Callable[[], Any], *, ends_attempt: bool = False, seconds: float = 240
) -> Recovery:
    """Do it to a job that trains, and wait until it trains on; with `ends_attempt` in another attempt.

    Raises AssertionError when the job fails or is done before that. The result goes to RLJOB_CHAOS_RESULTS, too.
    """
    before = job.status()
    start = time.monotonic()
    action()
    # What the first report afterwards tells may have been trained before.
    steps = [job.status()["step"]]

    def probe() -> dict[str, Any] | None:
        status = job.status()
        if status.get("phase") in ("Failed", "Succeeded"):
            raise AssertionError(f"{blow}: {job.name} is {status['phase']}: {status.get('message')}")
        if ends_attempt or status["attempt"] != before["attempt"]:
            later = status["attempt"] > before["attempt"]
            trains = later and status["step"] > (status["attempts"][-1].get("startStep") or 0)
        else:
            if status["step"] > steps[-1]:
                steps.append(status["step"])
            trains = len(steps) > 2
        return status if status["phase"] == "Running" and trains else None

    after = wait_for(f"{job.name} trains on after: {blow}", probe, seconds=seconds, every=0.5) or {}
    lost = 0
    ended = [attempt for attempt in after["attempts"] if before["attempt"] <= attempt["number"] < after["attempt"]]
    for attempt in ended:
        lost += attempt["endStep"] - attempt["committedStep"]
    recovery = Recovery(blow, before["step"], len(ended), lost, round(time.monotonic() - start, 1))
    _keep(recovery)
    return recovery


def kill_pods(kubectl: Kubectl, *names: str) -> None:
    """Delete pods by force: they are gone from the API at once, and the kubelet ends their processes a moment later."""
    kubectl("delete", "pod", *names, "--force", "--grace-period=0", "--wait=false")


def kill_engine(job: Job) -> None:
    """Kill the pod of the only engine, and wait until an engine on another pod serves."""
    (pod,) = job.pods("rollout")
    kill_pods(job.kubectl, pod["metadata"]["name"])
    wait_for("an engine on another pod", lambda: set(job.engines()) - {pod["metadata"]["name"]}, seconds=180)


def evict(kubectl: Kubectl, pod: str) -> None:
    """As `kubectl drain` does with the pods of a node: PodDisruptionBudgets are heeded, grace periods given."""
    metadata = {"name": pod, "namespace": kubectl.namespace}
    path = f"/api/v1/namespaces/{kubectl.namespace}/pods/{pod}/eviction"
    body = {"apiVersion": "policy/v1", "kind": "Eviction", "metadata": metadata}
    kubectl("create", "--raw", path, "-f", "-", stdin=json.dumps(body))


def kill_group(job: Job, group: str) -> None:
    """Kill the pods of a role."""
    names = [pod["metadata"]["name"] for pod in job.pods(group)]
    assert names, f"{job.name} has no {group} pod"
    kill_pods(job.kubectl, *names)


def kill_retriever(job: Job) -> None:
    """Kill the retriever's pod, and wait until another answers."""
    before = {pod["metadata"]["uid"] for pod in job.pods("retriever")}
    kill_group(job, "retriever")

    def another() -> bool:
        pods = [pod for pod in job.pods("retriever") if pod["metadata"]["uid"] not in before]
        conditions = [condition for pod in pods for condition in pod["status"].get("conditions", [])]
        return any(condition["type"] == "Ready" and condition["status"] == "True" for condition in conditions)

    wait_for("another retriever", another, seconds=120)


def kill_operator(system: Kubectl) -> None:
    """Kill the operator's pod, and wait until it is gone."""
    pods = wait_for("an operator's pod", lambda: system.names("pods", "-l", OPERATOR_LABELS), seconds=60)
    kill_pods(system, *(name.removeprefix("pod/") for name in pods))
    wait_for("it gone", lambda: not set(pods) & set(system.names("pods", "-l", OPERATOR_LABELS)), seconds=60)


@contextlib.contextmanager
def without_kuberay(system: Kubectl) -> Iterator[Callable[[], None]]:
    """What kills KubeRay's operator, which then stays away until the end of the block."""
    client = Kubectl(system.kubeconfig)
    (pod, *_) = client.items("pods", "-A", "-l", KUBERAY_LABELS)
    client.namespace = pod["metadata"]["namespace"]
    (deployment, *_) = client.names("deployments", "-l", KUBERAY_LABELS) or client.names("deployments")

    def kill() -> None:
        client("scale", deployment, "--replicas=0")
        kill_pods(client, *(name.removeprefix("pod/") for name in client.names("pods", "-l", KUBERAY_LABELS)))

    try:
        yield kill
    finally:
        client("scale", deployment, "--replicas=1")
        client("rollout", "status", deployment, "--timeout=120s", seconds=130)


def _keep(recovery: Recovery) -> None:
    text = json.dumps(asdict(recovery))
    print(f"chaos: {text}")
    if file := os.environ.get("RLJOB_CHAOS_RESULTS"):
        with Path(file).open("a", encoding="utf-8") as lines:
            lines.write(f"{text}\n")
