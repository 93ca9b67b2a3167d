"""A pod from which connections are tried."""

import json
from collections.abc import Iterable, Mapping

from e2e.support.kubectl import Kubectl

PORT = 8080
"""Where a probe itself takes connections."""
# All at once, since what a firewall drops answers by silence alone.
_TRY = """
import concurrent.futures, json, socket, sys
def reached(target):
    host, port = target.rsplit(":", 1)
    try:
        socket.create_connection((host, int(port)), timeout=3).close()
    except OSError:
        return False
    return True
targets = sys.argv[1:]
with concurrent.futures.ThreadPoolExecutor(len(targets)) as pool:
    print(json.dumps([t for t, there in zip(targets, pool.map(reached, targets)) if there]))
"""


class Probe:
    """A pod without any label of a job's. `image`: any that has Python."""

    def __init__(self, kubectl: Kubectl, image: str, name: str = "probe") -> None:
        self._kubectl, self._image, self._name = kubectl, image, name

    def start(self) -> None:
        """Create it, and wait until it answers."""
        container = {
            "name": "probe",
            "image": self._image,
            "imagePullPolicy": "IfNotPresent",
            "command": ["python", "-m", "http.server", str(PORT), "--directory", "/dev"],
            "readinessProbe": {"tcpSocket": {"port": PORT}, "periodSeconds": 1},
            "securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}},
        }
        spec = {
            "containers": [container],
            "securityContext": {"runAsNonRoot": True, "runAsUser": 65532, "seccompProfile": {"type": "RuntimeDefault"}},
            "automountServiceAccountToken": False,
            "terminationGracePeriodSeconds": 0,
        }
        self._kubectl.apply(
            json.dumps({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": self._name}, "spec": spec})
        )
        self._kubectl("wait", f"pod/{self._name}", "--for=condition=Ready", "--timeout=60s", seconds=70)

    @property
    def address(self) -> str:
        """`host:port` of the probe itself."""
        return f"{self._kubectl.get('pod', self._name)['status']['podIP']}:{PORT}"

    def reaches(self, targets: Mapping[str, str]) -> set[str]:
        """Names of the targets (`host:port`) that take a connection from here."""
        return reaches(self._kubectl, self._name, targets)


def reaches(kubectl: Kubectl, pod: str, targets: Mapping[str, str]) -> set[str]:
    """Names of the targets (`host:port`) that take a connection from a pod that has Python."""
    open_ = _connected(kubectl, pod, targets.values())
    return {name for name, target in targets.items() if target in open_}


def _connected(kubectl: Kubectl, pod: str, targets: Iterable[str]) -> set[str]:
    return set(json.loads(kubectl("exec", pod, "--", "python", "-c", _TRY, *targets)))
