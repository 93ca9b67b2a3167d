"""Kubernetes objects as plain dicts, the kinds that the operator deals with, and how to read common fields."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

Obj = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of namespaced objects."""

    api_version: str
    kind: str
    plural: str

    def path(self, namespace: str | None, name: str | None = None, subresource: str | None = None) -> str:
        """URL path of a collection (of all namespaces for None), an object or a subresource."""
        root = f"/api/{self.api_version}" if "/" not in self.api_version else f"/apis/{self.api_version}"
        parts = [root, *(["namespaces", namespace] if namespace else []), self.plural]
        return "/".join([*parts, *([name] if name else []), *([subresource] if subresource else [])])


RLJOB = Kind("rljob.io/v1alpha1", "RLJob", "rljobs")
CONFIG_MAP = Kind("v1", "ConfigMap", "configmaps")
SERVICE = Kind("v1", "Service", "services")
SERVICE_ACCOUNT = Kind("v1", "ServiceAccount", "serviceaccounts")
CLAIM = Kind("v1", "PersistentVolumeClaim", "persistentvolumeclaims")
POD = Kind("v1", "Pod", "pods")
EVENT = Kind("v1", "Event", "events")
ROLE = Kind("rbac.authorization.k8s.io/v1", "Role", "roles")
ROLE_BINDING = Kind("rbac.authorization.k8s.io/v1", "RoleBinding", "rolebindings")
LEASE = Kind("coordination.k8s.io/v1", "Lease", "leases")
NETWORK_POLICY = Kind("networking.k8s.io/v1", "NetworkPolicy", "networkpolicies")
DEPLOYMENT = Kind("apps/v1", "Deployment", "deployments")
JOB = Kind("batch/v1", "Job", "jobs")
AUTOSCALER = Kind("autoscaling/v2", "HorizontalPodAutoscaler", "horizontalpodautoscalers")
DISRUPTION_BUDGET = Kind("policy/v1", "PodDisruptionBudget", "poddisruptionbudgets")
RAY_JOB = Kind("ray.io/v1", "RayJob", "rayjobs")
RAY_CLUSTER = Kind("ray.io/v1", "RayCluster", "rayclusters")
WORKLOAD = Kind("kueue.x-k8s.io/v1beta2", "Workload", "workloads")

CHILDREN = (
    CONFIG_MAP, SERVICE_ACCOUNT, ROLE, ROLE_BINDING, CLAIM, LEASE, NETWORK_POLICY, SERVICE, DEPLOYMENT, JOB,
    AUTOSCALER, DISRUPTION_BUDGET, RAY_JOB, RAY_CLUSTER,
)  # fmt: skip
"""Kinds that a job's children have, pods apart. Each is listed and watched, which the chart's rules must allow."""
RAY_JOB_ENDED = ("Complete", "Failed", "ValidationFailed")
"""`jobDeploymentStatus` of a RayJob that has ended."""
KINDS = {kind.kind: kind for kind in (RLJOB, POD, EVENT, *CHILDREN)}

_SUFFIX = {"": Decimal(1), "n": Decimal("1e-9"), "u": Decimal("1e-6"), "m": Decimal("1e-3")}
_SUFFIX |= {letter: Decimal(1000) ** (i + 1) for i, letter in enumerate("kMGTPE")}
_SUFFIX |= {f"{letter}i": Decimal(1024) ** (i + 1) for i, letter in enumerate("KMGTPE")}
_QUANTITY = re.compile(
    r"([+-]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][+-]?[0-9]{1,3})?)(n|u|m|k|M|G|T|P|E|Ki|Mi|Gi|Ti|Pi|Ei)?"
)


def kind_of(obj: Mapping[str, Any]) -> Kind:
    """The kind of an object that says it. Raises KeyError for one that the operator does not know."""
    return KINDS[obj["kind"]]


def name_of(obj: Mapping[str, Any]) -> str:
    """metadata.name"""
    name: str = obj["metadata"]["name"]
    return name


def meta(obj: Mapping[str, Any], field: str, key: str) -> str | None:
    """One label or annotation: `meta(pod, "labels", "rljob.io/role")`."""
    value: str | None = (obj["metadata"].get(field) or {}).get(key)
    return value


def controlled_by(obj: Mapping[str, Any], uid: str) -> bool:
    """Whether the object's controller is the one with this UID."""
    return any(o.get("controller") and o["uid"] == uid for o in obj["metadata"].get("ownerReferences") or [])


def deleting(obj: Mapping[str, Any]) -> bool:
    """Whether the object is being deleted."""
    return bool(obj["metadata"].get("deletionTimestamp"))


def condition(obj: Mapping[str, Any], kind: str) -> dict[str, Any]:
    """A condition of an object's status; empty when there is none of the type."""
    return next((c for c in (obj.get("status") or {}).get("conditions") or [] if c.get("type") == kind), {})


def rfc3339(moment: datetime) -> str:
    """A time as Kubernetes writes it, whole seconds in UTC."""
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def parse_time(text: str) -> datetime:
    """A time as Kubernetes or the driver writes it. Raises ValueError when it is none."""
    moment = datetime.fromisoformat(text)
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


def quantity(text: str) -> Decimal | None:
    """The number that a quantity stands for (the apiserver rewrites `0.5` to `500m`); None when the text is none."""
    match = _QUANTITY.fullmatch(text)
    return Decimal(match[1]) * _SUFFIX[match[2] or ""] if match else None


def same(one: object, other: object) -> bool:
    """Whether two scalars mean the same: equal, or equal as quantities (an integer counts as one)."""
    if isinstance(one, bool) or isinstance(other, bool):
        return one is other
    if one == other:
        return True
    if not isinstance(one, str | int | float) or not isinstance(other, str | int | float):
        return False
    first = quantity(str(one))
    return first is not None and first == quantity(str(other))
