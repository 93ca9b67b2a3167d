"""Storage: a class `standard` (the default one) over a pool of folders of the node, one or many writers.

The volumes are static. One whose claim is gone stays Released, as Kubernetes has it for `Retain`; `refill` empties
its folder and offers it anew. `up` does that each time, so every test run starts with a full pool.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from .kubectl import Kubectl
from .paths import Paths
from .run import say
from .settings import STORAGE_CLASS, VOLUMES


def storage_class() -> dict[str, Any]:
    """The StorageClass."""
    return {
        "apiVersion": "storage.k8s.io/v1",
        "kind": "StorageClass",
        "metadata": {
            "name": STORAGE_CLASS,
            "annotations": {"storageclass.kubernetes.io/is-default-class": "true"},
        },
        "provisioner": "kubernetes.io/no-provisioner",
        "reclaimPolicy": "Retain",
        "volumeBindingMode": "Immediate",
    }


def volume(name: str, folder: Path) -> dict[str, Any]:
    """One PersistentVolume. Its size is a promise only; the folder may grow as far as the disk does."""
    return {
        "apiVersion": "v1",
        "kind": "PersistentVolume",
        "metadata": {"name": name},
        "spec": {
            "storageClassName": STORAGE_CLASS,
            "capacity": {"storage": "100Gi"},
            "accessModes": ["ReadWriteOnce", "ReadOnlyMany", "ReadWriteMany"],
            "persistentVolumeReclaimPolicy": "Retain",
            "hostPath": {"path": str(folder), "type": "Directory"},
        },
    }


def _empty(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    folder.chmod(0o777)  # hostPath knows no fsGroup, and pods run as users of many ids


def refill(paths: Paths, kubectl: Kubectl) -> None:
    """Make the pool whole: create the volumes that are missing, renew those whose claim is gone."""
    kubectl.apply([storage_class()])
    found = {item["metadata"]["name"]: item["status"].get("phase") for item in kubectl.get("pv")["items"]}
    names = [f"{STORAGE_CLASS}-{number}" for number in range(VOLUMES)]
    spent = [name for name in names if found.get(name) in ("Released", "Failed")]
    if spent:
        kubectl("delete", "pv", *spent, "--wait=true", "--timeout=30s")
    fresh = [name for name in names if name in spent or name not in found]
    for name in fresh:
        _empty(paths.volumes / name)
    if fresh:
        kubectl.apply(volume(name, paths.volumes / name) for name in fresh)
        say(f"{len(fresh)} volumes of class {STORAGE_CLASS} made ready")
