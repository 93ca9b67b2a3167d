"""Reading the world: an RLJob, its children and its pods, as they are now."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field

from rljob_api.contract import labels, names
from rljob_api.contract.progress import PREPARATION_KEY, PROGRESS_KEY, Preparation, Progress
from rljob_api.contract.request import REQUEST_KEY, Request, request_from_json

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

logger = logging.getLogger(__name__)
_REST = (POD, *(kind for kind in CHILDREN if kind not in (RAY_JOB, RAY_CLUSTER)))


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
        text = self._data(names.progress(self.name), PROGRESS_KEY)
        return self._noted(PROGRESS_KEY, *Progress.from_json(text)) if text else None

    def preparation(self) -> Preparation | None:
        """What the Job that prepares last said; None when there is nothing that can be read."""
        text = self._data(names.progress(self.name), PREPARATION_KEY)
        return self._noted(PREPARATION_KEY, *Preparation.from_json(text)) if text else None

    def _noted[M](self, key: str, report: M | None, unread: list[str]) -> M | None:
        """The report; what could not be read of it is logged."""
        if unread:
            what = "cannot be read" if report is None else "is read without a part of it"
            logger.warning("%s: %s %s: %s", self.name, key, what, "; ".join(unread)[:500])
        return report

    def request(self) -> Request:
        """What the driver was last asked; empty when nothing."""
        try:
            return request_from_json(self._data(names.control(self.name), REQUEST_KEY))
        except ValueError:
            return {}

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
