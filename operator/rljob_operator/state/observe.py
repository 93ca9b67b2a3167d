"""Reading the world: an RLJob, its children and its pods, as they are now."""

import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass, field

from pydantic import BaseModel, ConfigDict, Field
from pydantic.alias_generators import to_camel
from pydantic_core import from_json
from rljob_api.contract import labels, names

from rljob_operator.kube.client import ApiError, Kube
from rljob_operator.kube.objects import (
    CHILDREN,
    POD,
    RAY_CLUSTER,
    RAY_JOB,
    RLJOB,
    WORKLOAD,
    Obj,
    controlled_by,
    meta,
    name_of,
)
from rljob_operator.resources.config_maps import PREPARATION_KEY, PROGRESS_KEY, REQUEST_KEY
from rljob_operator.state.manifest import readable_part

logger = logging.getLogger(__name__)
_VERDICT = frozenset({"attempt", "state", "step", "totalSteps", "exitCode"})
"""What a driver's report cannot do without: guessed wrongly, an attempt would end otherwise than it did."""
_REST = (POD, *(kind for kind in CHILDREN if kind not in (RAY_JOB, RAY_CLUSTER)))


class _Report(BaseModel):
    model_config = ConfigDict(alias_generator=to_camel, extra="ignore", frozen=True)


class Commit(_Report):
    """A durable commit, as the driver reports it."""

    name: str = Field(max_length=256)
    step: int = Field(ge=0)
    policy_version: int = Field(default=0, ge=0)
    time: str | None = None


class Health(_Report):
    """A learning-health condition that holds."""

    policy: str = Field(max_length=32)
    message: str = Field(default="", max_length=8192)


class Engines(_Report):
    """Which pods the driver's engines are on."""

    serving: list[str] = Field(default_factory=list, max_length=2048)
    drained: list[str] = Field(default_factory=list, max_length=2048)


class EarlyStop(_Report):
    """The target that was reached."""

    target: str = Field(max_length=512)
    value: float
    step: int = Field(ge=0)


class Stalled(_Report):
    """A process that is stuck."""

    message: str = Field(default="", max_length=8192)
    stack: str | None = Field(default=None, max_length=4096)


class RewardFailures(_Report):
    """Samples that got no reward of late."""

    message: str = Field(default="", max_length=8192)


class Progress(_Report):
    """The driver's report, `progress.json`."""

    attempt: int
    incarnation: str = ""
    stage: str = ""
    step: int = Field(default=0, ge=0)
    total_steps: int = Field(default=0, ge=0)
    reward: float | None = None
    tokens_per_second: float | None = None
    goodput: float | None = None
    policy_version: int = Field(default=0, ge=0)
    evaluation: dict[str, float | None] = Field(default_factory=dict)
    last_commit: Commit | None = None
    health: dict[str, Health] = Field(default_factory=dict)
    reward_failures: RewardFailures | None = None
    early_stop: EarlyStop | None = None
    engines: Engines | None = None
    trainer_wait: float | None = None
    staleness_max: float | None = None
    stalled: Stalled | None = None
    heartbeat_seconds: float | None = Field(default=None, gt=0)
    """The driver promises a report at least this often; None: it promises nothing."""
    state: str = "Running"
    exit_code: int | None = None
    reason: str | None = None
    message: str | None = ""
    time: str | None = None


class Preparation(_Report):
    """How far the Job that prepares is, `preparation.json`."""

    stage: str = Field(default="", max_length=64)
    percent: int | None = Field(default=None, ge=0, le=100)
    amount: str | None = Field(default=None, max_length=64)


@dataclass(frozen=True)
class Observed:
    """What there is of one job."""

    job: Obj
    children: Mapping[tuple[str, str], Obj] = field(default_factory=dict)
    """By kind and name; those that this very RLJob controls, and all RayClusters with its label."""
    pods: tuple[Obj, ...] = ()
    """All pods with the job's label."""
    kuberay: bool = True
    """Whether the RayJob kind exists."""
    kueue: bool = False
    """Whether Workloads can be read; looked for where the job names a queue."""

    @property
    def name(self) -> str:
        """Name of the job."""
        return name_of(self.job)

    def child(self, kind: str, name: str) -> Obj | None:
        """One child."""
        return self.children.get((kind, name))

    def of_kind(self, kind: str) -> list[Obj]:
        """Children of a kind."""
        return [child for (its, _), child in self.children.items() if its == kind]

    def ray_job(self, attempt: int) -> Obj | None:
        """The RayJob of an attempt."""
        return self.child(RAY_JOB.kind, names.ray_job(self.name, attempt)) if attempt else None

    def ray_cluster(self, attempt: int) -> Obj | None:
        """The RayCluster of an attempt."""
        ray_job = self.ray_job(attempt)
        name = ((ray_job or {}).get("status") or {}).get("rayClusterName")
        return self.child(RAY_CLUSTER.kind, name) if name else None

    def group(self, group: str, attempt: int | None = None) -> list[Obj]:
        """Pods of a group, of an attempt."""
        return [
            pod
            for pod in self.pods
            if meta(pod, "labels", labels.ROLE) == group
            and (attempt is None or meta(pod, "labels", labels.ATTEMPT) == str(attempt))
        ]

    @property
    def ray_pods(self) -> list[Obj]:
        """Pods of Ray clusters, of any attempt."""
        return [pod for pod in self.pods if meta(pod, "labels", labels.ROLE) in labels.RAY_GROUPS]

    def progress(self) -> Progress | None:
        """The driver's last report, without what a driver of another version has put into it and this one cannot read;
        None when there is none, or none that says where its attempt stands."""
        return self._report(Progress, PROGRESS_KEY, _VERDICT)

    def preparation(self) -> Preparation | None:
        """What the Job that prepares last said; None when there is nothing that can be read."""
        return self._report(Preparation, PREPARATION_KEY, frozenset())

    def _report[M: _Report](self, model: type[M], key: str, needed: frozenset[str]) -> M | None:
        text = self._data(names.progress(self.name), key)
        if not text:
            return None
        try:
            report, unread = readable_part(model, from_json(text), lambda path: path[0] not in needed)
        except ValueError as error:
            report, unread = None, [str(error)]
        if unread:
            what = "cannot be read" if report is None else "is read without a part of it"
            logger.warning("%s: %s %s: %s", self.name, key, what, "; ".join(unread)[:500])
        return report

    def request(self) -> dict[str, object]:
        """What the driver was last asked; empty when nothing."""
        text = self._data(names.control(self.name), REQUEST_KEY)
        try:
            request = json.loads(text or "{}")
        except json.JSONDecodeError:
            return {}
        return request if isinstance(request, dict) else {}

    def _data(self, config_map: str, key: str) -> str | None:
        child = self.child("ConfigMap", config_map)
        value: str | None = ((child or {}).get("data") or {}).get(key)
        return value


async def observe(kube: Kube, namespace: str, name: str) -> Observed | None:
    """Read a job and all that is its; None when there is no such job. Raises ApiError."""
    job = await kube.get(RLJOB, namespace, name)
    if job is None:
        return None
    job["metadata"].pop("managedFields", None)
    selector = f"{labels.JOB}={name}"
    # The progress ConfigMap is read after the RayJob: what a RayJob's end says, the driver has reported before.
    ray_lists = await kube.lists((RAY_JOB, RAY_CLUSTER), namespace, selector)
    pods, *lists = await kube.lists(_REST, namespace, selector)
    uid = job["metadata"]["uid"]
    mine = [child for found in (*lists, ray_lists[0]) for child in found or [] if controlled_by(child, uid)]
    # A RayCluster outlives its RayJob for a while, and an earlier job of this name may have left one: all count.
    mine += ray_lists[1] or []
    workloads = await _workloads(kube, namespace, selector) if _queue(job) else None
    mine += workloads or []
    return Observed(
        job=job,
        children={(child["kind"], name_of(child)): child for child in mine},
        pods=tuple(pods or []),
        kuberay=ray_lists[0] is not None,
        kueue=workloads is not None,
    )


def _queue(job: Obj) -> object:
    """`spec.lifecycle.queue`, of a spec that nobody has validated."""
    found: object = job
    for name in ("spec", "lifecycle", "queue"):
        found = found.get(name) if isinstance(found, dict) else None
    return found


async def _workloads(kube: Kube, namespace: str, selector: str) -> list[Obj] | None:
    """Workloads of the job's RayJobs; None when there is no Kueue, or it may not be asked.

    They explain and decide nothing that cannot wait: the apiserver itself, which does not know which are the job's,
    answers with none.
    """
    try:
        return await kube.list(WORKLOAD, namespace, selector)
    except ApiError as error:
        if error.status is None or error.status >= 500:
            return []
        if error.status == 403:
            return None
        raise
