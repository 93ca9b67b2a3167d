"""The pod template that all groups share: security, volumes, what the user says of the group's pods.

Non-root, no capabilities, seccomp, a read-only root; writable are /tmp, /dev/shm and the job's directory.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from rljob_api.contract import labels, names
from rljob_api.contract.labels import Group
from rljob_api.v1alpha1.pods import PodOverrides
from rljob_api.v1alpha1.retriever import RETRIEVER_DIR

from rljob_operator.kube.objects import Obj
from rljob_operator.resources import patch
from rljob_operator.resources.context import CODE_DIR, CONFIG_DIR, MODEL_DIR, MOUNT, Context
from rljob_operator.resources.environment import Env, merged, of_user
from rljob_operator.resources.storage import claim_name, retriever_claim_name

GPU = "nvidia.com/gpu"
SEARCH_GROUPS: tuple[Group, ...] = ("retriever", "prepare")
"""Groups that make or read the index."""
SECURITY = {
    "allowPrivilegeEscalation": False,
    "capabilities": {"drop": ["ALL"]},
    "readOnlyRootFilesystem": True,
}


@dataclass(frozen=True)
class GroupPods:
    """One group of pods, before the user's patch."""

    name: Group
    container: str
    image: str
    env: list[Env]
    overrides: PodOverrides
    requests: dict[str, str]
    attempt: int | None = None
    command: list[str] | None = None
    ports: dict[str, int] = field(default_factory=dict)
    probes: dict[str, Any] = field(default_factory=dict)
    init: list[Obj] = field(default_factory=list)
    gpus: int = 0
    pre_stop: list[str] | None = None
    """What runs before the container is told to end."""
    reads_only: bool = False
    """The job's directory is mounted read-only."""
    token: bool = False
    """Mount a ServiceAccount token."""


def template(context: Context, group: GroupPods) -> Obj:
    """The pod template of a group: `{metadata, spec}`. Raises UserError when the user's patch cannot be merged."""
    overrides = group.overrides
    main: Obj = {
        "name": group.container,
        "image": group.image,
        "imagePullPolicy": pull_policy(context),
        "env": merged(group.env, of_user(overrides)),
        "resources": resources(overrides, group.requests, group.gpus),
        "ports": [{"name": name, "containerPort": port} for name, port in group.ports.items()],
        "securityContext": SECURITY,
        "terminationMessagePolicy": "FallbackToLogsOnError",
        "volumeMounts": mounts(context, group.name, read_only=group.reads_only),
        **group.probes,
    }
    if group.command:
        main["command"] = group.command
    if group.pre_stop:
        main["lifecycle"] = {"preStop": {"exec": {"command": group.pre_stop}}}
    settings = context.settings
    spec: Obj = {
        "serviceAccountName": overrides.service_account_name or names.driver(context.name),
        "automountServiceAccountToken": group.token,
        "enableServiceLinks": False,
        "terminationGracePeriodSeconds": context.spec.lifecycle.termination_grace_period_seconds,
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": settings.run_as_user,
            "runAsGroup": settings.run_as_user,
            "fsGroup": settings.run_as_user,
            "fsGroupChangePolicy": "OnRootMismatch",
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "containers": [main],
        "volumes": _volumes(context, overrides, group.name),
    }
    if group.init:
        spec["initContainers"] = group.init
    pull_secrets = [*settings.image_pull_secrets, *context.spec.images.pull_secrets]
    if pull_secrets:
        spec["imagePullSecrets"] = [{"name": name} for name in dict.fromkeys(pull_secrets)]
    spec |= _placement(overrides, labels.pod(context.name, group.name, group.attempt))
    own = labels.pod(context.name, group.name, group.attempt)
    body: Obj = {"metadata": {"labels": dict(overrides.labels)}, "spec": spec}
    if overrides.annotations:
        body["metadata"]["annotations"] = dict(overrides.annotations)
    if overrides.pod_template_patch:
        body = patch.merge(body, overrides.pod_template_patch, f"the {group.name} group's podTemplatePatch")
    # What the operator finds its pods by cannot be patched away.
    body.setdefault("metadata", {})["labels"] = (body["metadata"].get("labels") or {}) | own
    return body


def pull_policy(context: Context) -> str:
    """Image pull policy of the job."""
    return context.spec.images.pull_policy or context.settings.image_pull_policy


def mounts(context: Context, group: Group, *, read_only: bool = False) -> list[Obj]:
    """Volume mounts of every container of a group; `read_only`: the job's directory and the retriever's."""
    access = {"readOnly": True} if read_only else {}
    result: list[Obj] = [
        {"name": "data", "mountPath": MOUNT} | access,
        {"name": "config", "mountPath": CONFIG_DIR, "readOnly": True},
        {"name": "tmp", "mountPath": "/tmp"},
        {"name": "shm", "mountPath": "/dev/shm"},
    ]
    code = context.spec.code
    if code.files or code.config_map:
        result.append({"name": "code", "mountPath": CODE_DIR, "readOnly": True})
    elif volume := code.persistent_volume_claim:
        mount = {"name": "code", "mountPath": CODE_DIR, "readOnly": True}
        result.append(mount | ({"subPath": volume.path} if volume.path else {}))
    if context.spec.model.source.type == "persistentVolumeClaim":
        result.append({"name": "model", "mountPath": MODEL_DIR, "readOnly": True})
    if group in SEARCH_GROUPS and retriever_claim_name(context):
        result.append({"name": "retriever", "mountPath": RETRIEVER_DIR} | access)
    return result


def _volumes(context: Context, overrides: PodOverrides, group: Group) -> list[Obj]:
    result: list[Obj] = [
        {"name": "data", "persistentVolumeClaim": {"claimName": claim_name(context)}},
        {"name": "config", "configMap": {"name": names.config(context.name)}},
        {"name": "tmp", "emptyDir": {}},
        {"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": overrides.shm_size}},
    ]
    code = context.spec.code
    if code.files:
        result.append({"name": "code", "configMap": {"name": names.code(context.name)}})
    elif code.config_map:
        result.append({"name": "code", "configMap": {"name": code.config_map.name}})
    elif volume := code.persistent_volume_claim:
        result.append({"name": "code", "persistentVolumeClaim": {"claimName": volume.claim_name, "readOnly": True}})
    source = context.spec.model.source
    if source.type == "persistentVolumeClaim" and source.claim_name:
        result.append({"name": "model", "persistentVolumeClaim": {"claimName": source.claim_name, "readOnly": True}})
    if group in SEARCH_GROUPS and (name := retriever_claim_name(context)):
        result.append({"name": "retriever", "persistentVolumeClaim": {"claimName": name}})
    return result


def resources(overrides: PodOverrides, defaults: Mapping[str, str], gpus: int = 0) -> Obj:
    """Resources of a container: what the user says, else the defaults, and devices."""
    devices = ({GPU: str(gpus)} if gpus else {}) | overrides.rdma
    given = overrides.resources
    limits = given.limits | devices
    # A limit alone is also the request, as the apiserver would have it; our defaults must not undercut it.
    requested = {name: amount for name, amount in defaults.items() if name not in limits}
    requests = requested | given.requests | devices
    return ({"requests": requests} if requests else {}) | ({"limits": limits} if limits else {})


def _placement(overrides: PodOverrides, own: dict[str, str]) -> Obj:
    result: Obj = {}
    if overrides.affinity:
        result["affinity"] = overrides.affinity
    if overrides.topology_spread_constraints:
        group = {key: own[key] for key in (labels.JOB, labels.ROLE)}
        result["topologySpreadConstraints"] = [
            {"labelSelector": {"matchLabels": group}} | spread for spread in overrides.topology_spread_constraints
        ]
    if overrides.scheduler_name:
        result["schedulerName"] = overrides.scheduler_name
    if overrides.node_selector:
        result["nodeSelector"] = dict(overrides.node_selector)
    if overrides.tolerations:
        result["tolerations"] = [toleration.to_api() for toleration in overrides.tolerations]
    if overrides.priority_class_name:
        result["priorityClassName"] = overrides.priority_class_name
    if overrides.runtime_class_name:
        result["runtimeClassName"] = overrides.runtime_class_name
    return result
