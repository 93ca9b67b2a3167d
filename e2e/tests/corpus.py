"""The corpus of bad manifests: each as one change to a good one."""

import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

_FILE = Path(__file__).with_name("bad_manifests.yaml")
ACCEPTED = "accepted"


@dataclass(frozen=True)
class Case:
    """A bad manifest and what must be said of it."""

    id: str
    manifest: dict[str, Any]
    says: str
    api: str


def _raw() -> dict[str, Any]:
    return dict(yaml.safe_load(_FILE.read_text()))


def good(base: str) -> dict[str, Any]:
    """A good manifest, by name."""
    return copy.deepcopy(_raw()["bases"][base])


def cases() -> list[Case]:
    """All bad manifests."""
    raw = _raw()
    return [
        Case(
            case["id"],
            changed(raw["bases"][case.get("base", "cpu")], case["set"]),
            case["says"],
            case.get("api", case["says"]),
        )
        for case in raw["cases"]
    ]


def mutations(kind: str = "mutations") -> list[dict[str, Any]]:
    """Changes to a job that has started: `mutations` are refused, `allowed-mutations` are not."""
    return list(_raw()[kind])


def changed(manifest: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """A copy with each dotted path set, or removed where the value is None."""
    result = copy.deepcopy(manifest)
    for path, value in changes.items():
        *parents, last = path.split(".")
        node: Any = result
        for part in parents:
            node = node[int(part)] if isinstance(node, list) else node.setdefault(part, {})
        if value is None:
            node.pop(last, None)
        else:
            node[last] = value
    return result
