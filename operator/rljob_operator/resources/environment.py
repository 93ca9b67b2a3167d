"""Environment variables of the job's containers. Secrets are references: their values never pass the operator."""

from typing import Any

from rljob_api.contract import environment_variables as variables
from rljob_api.contract import names
from rljob_api.contract.labels import Group
from rljob_api.v1alpha1.base import SecretKeyRef
from rljob_api.v1alpha1.pods import EnvVar, PodOverrides

from rljob_operator.resources.context import CODE_DIR, MODEL_DIR, Context

Env = dict[str, Any]
POD_LOG = "/proc/1/fd/1"
"""Standard output of the container's first process, which is what `kubectl logs` shows. Ray keeps the driver's own."""


def value(name: str, text: str | int) -> Env:
    """A literal variable."""
    return {"name": name, "value": str(text)}


def secret(name: str, secret_name: str, key: str) -> Env:
    """A variable out of a Secret."""
    return {"name": name, "valueFrom": {"secretKeyRef": {"name": secret_name, "key": key}}}


def field(name: str, path: str) -> Env:
    """A variable out of the pod's own fields."""
    return {"name": name, "valueFrom": {"fieldRef": {"fieldPath": path}}}


def job(context: Context) -> list[Env]:
    """What every container of the job has."""
    env = [
        value(variables.NAME, context.name),
        field(variables.NAMESPACE, "metadata.namespace"),
        value(variables.UID, context.uid),
        value(variables.DIR, context.directory),
        value("HOME", "/tmp"),
        value("PYTHONUNBUFFERED", "1"),
    ]
    if path := python_path(context):
        env.append(value("PYTHONPATH", path))
    return env


def python_path(context: Context) -> str | None:
    """Where the user's modules are; None when they bring none."""
    code = context.spec.code
    if code.image_path:
        return code.image_path
    return CODE_DIR if code.files or code.config_map or code.persistent_volume_claim else None


def ray(context: Context, group: Group, attempt: int) -> list[Env]:
    """What the containers of head, trainer and rollout have."""
    env = [
        *job(context),
        value(variables.ATTEMPT, attempt),
        value(variables.ROLE, group),
        value(variables.POD_LOG, POD_LOG),
        field(variables.POD_NAME, "metadata.name"),
        value("OMP_NUM_THREADS", context.spec.trainer.threads_per_rank),
        value("RAY_USAGE_STATS_ENABLED", "0"),
    ]
    if context.spec.model.source.type == "persistentVolumeClaim":
        env.append(value(variables.MODEL_DIR, MODEL_DIR))
    if retriever := context.spec.retriever:
        host = f"{names.retriever(context.name)}.{context.namespace}.svc"
        env.append(value(variables.RETRIEVER_URL, f"http://{host}:{retriever.port}"))
    if group == "head":
        env += [
            value(variables.PROGRESS_CONFIG_MAP, names.progress(context.name)),
            value(variables.CONTROL_CONFIG_MAP, names.control(context.name)),
            value(variables.LEASE, names.driver(context.name)),
            field(variables.INCARNATION_ID, "metadata.uid"),
            *drivers_secrets(context),
        ]
    return env + hub_token(context)


def hub_token(context: Context) -> list[Env]:
    """The token that models and data are downloaded with, by whoever loads them."""
    token = context.spec.model.source.token
    return [secret(token.env or "HF_TOKEN", token.name, token.key)] if token else []


def drivers_secrets(context: Context) -> list[Env]:
    """References to the keys that the driver alone uses: it tracks, uploads, searches, calls tools and rewards.

    Ranks and engines never see them. Each is under the variable that its consumer reads.
    """
    spec = context.spec
    wanted: list[tuple[SecretKeyRef | None, str]] = []
    if google := spec.rollout.generate.search.google:
        wanted.append((google.api_key, variables.SEARCH_KEY))
    wanted += [(tool.token, variables.tool_token(i)) for i, tool in enumerate(spec.rollout.generate.tools.functions)]
    if spec.tracking.wandb:
        wanted.append((spec.tracking.wandb.api_key, "WANDB_API_KEY"))
    if spec.tracking.mlflow:
        wanted.append((spec.tracking.mlflow.token, "MLFLOW_TRACKING_TOKEN"))
    if spec.checkpoint.hub:
        wanted.append((spec.checkpoint.hub.token, variables.HUB_PUSH_TOKEN))
    if spec.reward:
        wanted += [(f.token, variables.reward_token(i)) for i, f in enumerate(spec.reward.functions)]
    return [secret(ref.env or name, ref.name, ref.key) for ref, name in wanted if ref]


def of_user(overrides: PodOverrides) -> list[Env]:
    """The variables that the user adds to a group."""
    return [_user(variable) for variable in overrides.env]


def _user(variable: EnvVar) -> Env:
    if ref := variable.secret_key_ref:
        return secret(variable.name, ref.name, ref.key)
    return value(variable.name, variable.value or "")


def merged(*parts: list[Env]) -> list[Env]:
    """The parts in order; a later variable replaces an earlier one of the same name in its place."""
    result: dict[str, Env] = {}
    for part in parts:
        result |= {variable["name"]: variable for variable in part}
    return list(result.values())
