"""CustomResourceDefinitions of a cluster."""

import json

from e2e.support.kubectl import Kubectl
from e2e.support.wait import wait_for


def wait_established(kubectl: Kubectl, name: str, seconds: float = 60) -> None:
    """Wait until the apiserver serves it. (`kubectl wait` fails on one without conditions.)"""

    def established() -> bool:
        status = json.loads(kubectl("get", "crd", name, "-o", "json")).get("status") or {}
        conditions = status.get("conditions") or []
        return any(c["type"] == "Established" and c["status"] == "True" for c in conditions)

    wait_for(f"definition {name}", established, seconds=seconds)
