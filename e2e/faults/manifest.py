"""The job that the fault suite runs: small, accepted by this version, on CPU."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import yaml

_BASE: dict[str, Any] = yaml.safe_load(Path(__file__).with_name("job.yaml").read_text())


def manifest(name: str, namespace: str, **spec: Any) -> dict[str, Any]:
    """The job under a name, its spec changed; a part that is None is left out."""
    body = copy.deepcopy(_BASE)
    body["metadata"] = {"name": name, "namespace": namespace}
    for key, value in spec.items():
        if value is None:
            del body["spec"][key]
        else:
            body["spec"][key] = value
    if "retriever" not in body["spec"]:
        body["spec"]["rollout"]["generate"] = {"type": "single_turn"}
    return body
