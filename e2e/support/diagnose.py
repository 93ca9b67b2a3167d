"""What a failed test leaves behind to read: objects, Events, logs."""

import os
from pathlib import Path

from e2e.support.kubectl import Kubectl, KubectlError


def folder() -> Path:
    """Where diagnoses are kept: outside the checkout, beside the cluster's own logs."""
    cache = os.environ.get("RLJOB_CACHE") or os.path.join(
        os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"), "rljob"
    )
    return Path(cache) / "logs" / "e2e"


def collect(test: str, kubectl: Kubectl, system: Kubectl) -> Path:
    """Write the namespace's objects, Events and pod logs, and the operator's log, into a folder for `test`."""
    target = folder() / test
    target.mkdir(parents=True, exist_ok=True)

    def keep(file: str, client: Kubectl, *arguments: str) -> str:
        try:
            text = client(*arguments)
        except KubectlError as error:
            text = str(error)
        (target / file).write_text(text)
        return text

    keep(
        "objects.txt", kubectl, "get", "rljobs,rayjobs,rayclusters,pods,deployments,pvc,configmaps,leases", "-o", "wide"
    )
    keep("rljobs.yaml", kubectl, "get", "rljobs,rayjobs,rayclusters", "-o", "yaml")
    keep("progress.yaml", kubectl, "get", "configmaps", "-o", "yaml")
    keep("events.txt", kubectl, "get", "events", "--sort-by=.lastTimestamp")
    keep("pods.txt", kubectl, "describe", "pods")
    for pod in kubectl.names("pods"):
        keep(f"{pod.split('/')[1]}.log", kubectl, "logs", pod, "--all-containers", "--prefix", "--tail=2000")
    for pod in system.names("pods"):
        keep(f"{pod.split('/')[1]}.log", system, "logs", pod, "--tail=2000")
    print(f"diagnosis: {target}")
    return target
