"""A pod in which the job's files can be read: one of the job's own, or one made for it and removed again."""

import contextlib
import secrets
import time
from collections.abc import Iterator
from typing import Any

from rljob_api.contract import names

from rljob_cli.cluster import Cluster, Obj
from rljob_cli.exits import ClusterError

START_SECONDS = 120.0
LIFE_SECONDS = 600
"""A pod that nobody removes (this process was killed) ends by itself."""


@contextlib.contextmanager
def reading(cluster: Cluster, stored: Obj) -> Iterator[str]:
    """Name of a running pod that has the job's directory under /rljob."""
    name = stored["metadata"]["name"]
    for role in ("head", "trainer", "rollout", "retriever"):
        for pod in cluster.pods(name, role):
            if pod.status.phase == "Running" and pod.metadata.deletion_timestamp is None:
                yield pod.metadata.name
                return
    body = _pod(cluster, stored)
    made = cluster.create_pod(body)
    try:
        _wait(cluster, made)
        yield made
    finally:
        cluster.delete_pod(made)


def _wait(cluster: Cluster, pod: str) -> None:
    end = time.monotonic() + START_SECONDS
    while True:
        status = cluster.pod(pod).status
        if status.phase == "Running":
            return
        if status.phase in ("Failed", "Succeeded") or time.monotonic() > end:
            waiting = [c.state.waiting for c in status.container_statuses or [] if c.state and c.state.waiting]
            reasons = [f"{state.reason}: {state.message or ''}" for state in waiting]
            reasons += [c.message for c in status.conditions or [] if c.status == "False" and c.message]
            raise ClusterError(
                f"pod {pod}, which reads the job's files, does not start: {'; '.join(reasons) or status.phase}"
            )
        time.sleep(0.5)


def _pod(cluster: Cluster, stored: Obj) -> dict[str, Any]:
    name, spec = stored["metadata"]["name"], stored["spec"]
    template = cluster.template(name)
    if template is None:
        raise ClusterError(
            f"RLJob {name} has no pods, and nothing of it is left that names an image to read its volume with",
            hint=f"mount the claim of the job and open report.html in {name}'s directory",
        )
    source = template["spec"]
    claim = (spec.get("storage") or {}).get("claimName") or names.claim(name)
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": f"{name}-report-{secrets.token_hex(3)}",
            "labels": {"app.kubernetes.io/name": "rljob-report", "app.kubernetes.io/managed-by": "rljob-cli"},
        },
        "spec": {
            "restartPolicy": "Never",
            "activeDeadlineSeconds": LIFE_SECONDS,
            "automountServiceAccountToken": False,
            "enableServiceLinks": False,
            "terminationGracePeriodSeconds": 1,
            "securityContext": source.get("securityContext") or {},
            "imagePullSecrets": source.get("imagePullSecrets") or [],
            "nodeSelector": source.get("nodeSelector") or {},
            "tolerations": source.get("tolerations") or [],
            "containers": [
                {
                    "name": "reader",
                    "image": source["containers"][0]["image"],
                    "imagePullPolicy": source["containers"][0].get("imagePullPolicy", "IfNotPresent"),
                    "command": ["python", "-c", f"import time; time.sleep({LIFE_SECONDS})"],
                    "resources": {"requests": {"cpu": "10m", "memory": "64Mi"}, "limits": {"memory": "512Mi"}},
                    "securityContext": source["containers"][0].get("securityContext") or {},
                    "volumeMounts": [{"name": "data", "mountPath": "/rljob", "readOnly": True}],
                }
            ],
            "volumes": [{"name": "data", "persistentVolumeClaim": {"claimName": claim}}],
        },
    }
