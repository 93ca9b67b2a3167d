"""A retriever of the tests' own in a pod, which answers as late as it is told."""

import json
import re
from pathlib import Path

from e2e.support import slow_retriever
from e2e.support.jobs import Job
from e2e.support.kubectl import Kubectl

_FAILED = re.compile(r'^rljob_failed_samples_total\{.*status="failed".*\} (\S+)$', re.MULTILINE)


class RetrieverPod:
    """Pod and Service of one name. `image`: any that has Python."""

    def __init__(self, kubectl: Kubectl, name: str, image: str) -> None:
        self._kubectl, self._name, self._image = kubectl, name, image
        self.url = f"http://{name}:{slow_retriever.PORT}/retrieve"

    def start(self) -> None:
        """Create it, and wait until it answers."""
        source = Path(slow_retriever.__file__).read_text(encoding="utf-8")
        labels = {"app": self._name}
        probe = {"httpGet": {"path": "/", "port": slow_retriever.PORT}, "periodSeconds": 1}
        container = {
            "name": "retriever",
            "image": self._image,
            "imagePullPolicy": "IfNotPresent",
            "command": ["python", "-c", source],
            "readinessProbe": probe,
            "securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}},
        }
        security = {"runAsNonRoot": True, "runAsUser": 65532, "seccompProfile": {"type": "RuntimeDefault"}}
        spec = {"containers": [container], "securityContext": security, "terminationGracePeriodSeconds": 1}
        metadata = {"name": self._name, "labels": labels}
        pod = {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec}
        ports = [{"port": slow_retriever.PORT}]
        service = {
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": {"name": self._name},
            "spec": {"selector": labels, "ports": ports},
        }
        for item in (pod, service):
            self._kubectl.apply(json.dumps(item))
        self._kubectl("wait", f"pod/{self._name}", "--for=condition=Ready", "--timeout=60s", seconds=70)

    def delay(self, seconds: float) -> None:
        """Answer searches that late from here on."""
        self._get(self._name, slow_retriever.PORT, f"delay/{seconds}")

    def failed_samples(self, job: Job) -> float:
        """Samples of the job that failed, as its driver counts them."""
        (head,) = job.pods("head")
        found = _FAILED.search(self._get(head["metadata"]["name"], 9090, "metrics"))
        assert found, "the driver tells of no failed samples"
        return float(found[1])

    def _get(self, pod: str, port: int, path: str) -> str:
        return self._kubectl(
            "get", "--raw", f"/api/v1/namespaces/{self._kubectl.namespace}/pods/{pod}:{port}/proxy/{path}"
        )
