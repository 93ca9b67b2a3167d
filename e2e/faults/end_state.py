"""What is left at the end of a run, without what tells one run from another."""

from __future__ import annotations

import asyncio
import re
from typing import Any, NamedTuple

from rljob_api.contract import labels
from rljob_operator.kube.objects import CHILDREN, POD, RLJOB, Kind, Obj, meta, name_of

from e2e.faults.access import Admin

_DROPPED = {
    "uid", "resourceVersion", "generation", "creationTimestamp", "managedFields", "namespace", "observedGeneration",
    "ownerReferences", "requestedAt", "clusterIP", "clusterIPs", labels.APPLIED, "deployment.kubernetes.io/revision",
}  # fmt: skip
_KINDS = (RLJOB, POD, *CHILDREN)
_OWNERS = {kind.kind for kind in _KINDS}
# The controller-manager's own, in every namespace.
_EVERYWHERE = {("ConfigMap", "kube-root-ca.crt"), ("ServiceAccount", "default")}
_TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z")
_PREPARE = re.compile(r"-prepare-[0-9a-f]+$")
_REQUEST = re.compile(r'"(generation|requestedAt)": ?("[^"]*"|\d+|null)')


class EndState(NamedTuple):
    """What is there, by kind and name, and how much of a namespace the garbage collector still has to take."""

    objects: dict[str, Any]
    uncollected: int


async def end_state(admin: Admin, namespace: str) -> EndState:
    """Everything in a namespace; pods with a name at random are told by their role."""
    lists = await asyncio.gather(*(admin.list(kind, namespace) for kind in _KINDS))
    state: dict[str, Any] = {}
    uncollected = 0
    uids = [job["metadata"]["uid"] for job in lists[0] or []]
    mask = re.compile("|".join(map(re.escape, [namespace, *uids])))
    there = {obj["metadata"]["uid"] for found in lists for obj in found or []}
    for kind, found in zip(_KINDS, lists, strict=True):
        for obj in found or []:
            if _orphaned(obj, there):
                uncollected += 1
            elif (kind.kind, name_of(obj)) not in _EVERYWHERE:
                key = _key(kind, obj)
                # Of pods and Jobs that others name and fill in, that they are there is all there is to say.
                if kind is RLJOB:  # made from the namespace, among others
                    ((obj.get("status") or {}).get("preparation") or {}).pop("key", None)
                state[key] = {} if key.startswith(("Pod (", "Job ")) else _plain(obj, mask)
    return EndState(state, uncollected)


def _orphaned(obj: Obj, there: set[str]) -> bool:
    """Whether its owners of our kinds are gone, so that it is the garbage collector's."""
    references = obj["metadata"].get("ownerReferences") or []
    owners = {owner["uid"] for owner in references if owner["kind"] in _OWNERS}
    return bool(owners) and not owners & there


def _key(kind: Kind, obj: Obj) -> str:
    if kind is POD and (role := meta(obj, "labels", labels.ROLE)) in ("retriever", "prepare"):
        return f"Pod ({role})"
    return f"{kind.kind} {_PREPARE.sub('-prepare', name_of(obj))}"


def _plain(value: Any, mask: re.Pattern[str]) -> Any:
    if isinstance(value, dict):
        if "spec" in value and value.get("kind") in ("Pod", "Deployment", "Service", "PersistentVolumeClaim"):
            # Their status and their defaults are others' work; that they are there, and how, is ours.
            value = {k: v for k, v in value.items() if k != "status"} | ({"spec": {}} if value["kind"] == "Pod" else {})
        return {
            key: _plain(inner, mask)
            for key, inner in sorted(value.items())
            if key not in _DROPPED and not key.endswith(("Time", "time", "-digest", "template-hash"))
        }
    if isinstance(value, list):
        return [_plain(inner, mask) for inner in value]
    if isinstance(value, str):
        if _TIME.fullmatch(value):
            return "*"
        return _REQUEST.sub(r'"\1": *', mask.sub("*", value))
    return value


def difference(expected: Any, found: Any, path: str = "") -> list[str]:
    """Where two end states differ, as lines."""
    if isinstance(expected, dict) and isinstance(found, dict):
        lines = []
        for key in sorted(expected.keys() | found.keys()):
            where = f"{path}/{key}"
            if key not in found:
                lines.append(f"missing {where}")
            elif key not in expected:
                lines.append(f"left over {where}")
            else:
                lines += difference(expected[key], found[key], where)
        return lines
    if isinstance(expected, list) and isinstance(found, list) and len(expected) == len(found):
        return [
            line
            for i, (a, b) in enumerate(zip(expected, found, strict=True))
            for line in difference(a, b, f"{path}/{i}")
        ]
    if expected == found:
        return []
    return [f"{path}: {_short(expected)} without the fault, {_short(found)} with it"]


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) < 200 else f"{text[:100]}…{text[-60:]}"
