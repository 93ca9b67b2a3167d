"""What is left of an object that the apiserver sends: the fields that a plan reads, and no endless nesting.

A pod's spec, the pod templates of a Ray cluster and the text of a ConfigMap are most of what a job's objects hold, and
nothing of them decides anything. Whoever needs another field in a plan adds it here; the tests' cluster in memory gives
out trimmed objects, too, so a field that is missing is seen there.

The apiserver takes 10,000 levels in a field without a schema. Parsers and encoders here give up at 254 to 1,500, and a
listing that cannot be read would stop every job of the cluster for one job's sake. What is too deep is cut off; a job
of which anything was cut is refused (`plan.accept`), by the limit that the command line has for a manifest.
"""

import hashlib
import re
from collections.abc import Callable, Mapping
from typing import Any

import orjson
from rljob_api.contract.labels import PROGRESS_COMPONENT
from rljob_api.manifest.nesting import MAX_DEPTH

from rljob_operator.kube.objects import Obj

_METADATA = (
    "name", "namespace", "uid", "generation", "resourceVersion", "creationTimestamp", "deletionTimestamp", "labels",
    "annotations", "finalizers", "ownerReferences",
)  # fmt: skip
_LAST_APPLIED = "kubectl.kubernetes.io/last-applied-configuration"
_LONG = 256
"""Characters of a ConfigMap's value from which on its digest stands for it."""
_CUT = "nested too deeply"
_TOKEN = re.compile(rb'"(?:[^"\\]|\\.)*"|[\[\]{}]', re.DOTALL)
WRAPPED = 8
"""Levels that a listing or an event puts around an object, and some."""


def trim(obj: Obj) -> Obj:
    """The object with what is kept of it; parts are shared with the original. `trim(trim(x)) == trim(x)`."""
    result = dict(obj)
    metadata = obj["metadata"]
    result["metadata"] = small = {key: metadata[key] for key in _METADATA if key in metadata}
    if _LAST_APPLIED in (small.get("annotations") or {}):
        small["annotations"] = {key: value for key, value in small["annotations"].items() if key != _LAST_APPLIED}
    return shrink(result) if (shrink := _SHRINK.get(obj.get("kind", ""))) else result


def _rl_job(obj: Obj) -> Obj:
    return obj | {"spec": shallow(obj.get("spec") or {}, MAX_DEPTH)}  # one level less deep than the object


def _pod(obj: Obj) -> Obj:
    spec = obj.get("spec") or {}
    names = ("nodeName", "schedulingGates", "priorityClassName", "terminationGracePeriodSeconds")
    return obj | {"spec": {name: spec[name] for name in names if name in spec}}


def _ray_job(obj: Obj) -> Obj:
    # The status repeats the RayCluster's, which is watched itself.
    status = {key: value for key, value in (obj.get("status") or {}).items() if key != "rayClusterStatus"}
    spec = {key: value for key, value in (obj.get("spec") or {}).items() if key != "rayClusterSpec"}
    return obj | {"spec": spec, "status": status}


def _ray_cluster(obj: Obj) -> Obj:
    spec = dict(obj.get("spec") or {})
    if "headGroupSpec" in spec:
        spec["headGroupSpec"] = _without_template(spec["headGroupSpec"])
    if "workerGroupSpecs" in spec:
        spec["workerGroupSpecs"] = [_without_template(group) for group in spec["workerGroupSpecs"] or []]
    status = obj.get("status") or {}
    # Its counts change with every pod, and the pods are watched themselves.
    return obj | {"spec": spec, "status": {key: status[key] for key in ("state", "reason") if key in status}}


def _without_template(group: Mapping[str, Any]) -> Obj:
    return {key: value for key, value in group.items() if key != "template"}


def _config_map(obj: Obj) -> Obj:
    # The driver's report is read; what the operator wrote itself is only compared.
    if (obj["metadata"].get("labels") or {}).get("app.kubernetes.io/component") == PROGRESS_COMPONENT:
        return obj
    if not obj.get("data"):
        return obj
    return obj | {"data": {key: _digest(value) for key, value in obj["data"].items()}}


def _digest(value: str) -> str:
    return value if len(value) < _LONG else f"sha256:{hashlib.sha256(value.encode()).hexdigest()}"


def _job(obj: Obj) -> Obj:
    return {key: value for key, value in obj.items() if key != "spec"}


def _workload(obj: Obj) -> Obj:
    # Its pod sets are whole pod templates.
    status = obj.get("status") or {}
    admission = {"clusterQueue": (status.get("admission") or {}).get("clusterQueue")}
    small = {key: status[key] for key in ("conditions", "admissionChecks") if key in status}
    return obj | {"spec": {"active": (obj.get("spec") or {}).get("active")}, "status": small | {"admission": admission}}


def _lease(obj: Obj) -> Obj:
    # The driver's own: it renews it every few seconds, which is no reason to look.
    return {key: value for key, value in obj.items() if key != "spec"}


_SHRINK: dict[str, Callable[[Obj], Obj]] = {
    "RLJob": _rl_job,
    "Pod": _pod,
    "RayJob": _ray_job,
    "RayCluster": _ray_cluster,
    "ConfigMap": _config_map,
    "Job": _job,
    "Lease": _lease,
    "Workload": _workload,
}


def loads(text: bytes | str) -> Any:
    """Parse JSON of any depth. Raises orjson.JSONDecodeError for what is no JSON."""
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError:
        data = text.encode() if isinstance(text, str) else text
        cut_off = cut(data, MAX_DEPTH + WRAPPED)
        if cut_off == data:
            raise
        return orjson.loads(cut_off)


def cut(text: bytes, depth: int) -> bytes:
    """JSON text with a string in place of each object and array that is more than `depth` levels deep."""
    result, level, kept_to = [], 0, 0
    for token in _TOKEN.finditer(text):
        match token[0]:
            case b"{" | b"[":
                level += 1
                if level == depth + 1:
                    result += [text[kept_to : token.start()], orjson.dumps(_CUT)]
            case b"}" | b"]":
                if level == depth + 1:
                    kept_to = token.end()
                level -= 1
    return b"".join(result) + text[kept_to:] if level == 0 else text


def shallow(value: Any, depth: int = MAX_DEPTH + 1) -> Any:
    """A value with a string in place of each dict and list that is more than `depth` levels deep."""
    if not isinstance(value, dict | list):
        return value
    if depth == 0:
        return _CUT
    if isinstance(value, dict):
        return {key: shallow(inner, depth - 1) for key, inner in value.items()}
    return [shallow(inner, depth - 1) for inner in value]
