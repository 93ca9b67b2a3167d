"""Everybody but the operator, on a control plane without nodes: KubeRay and kubelet, played by one small controller.

It does what KubeRay does as far as an RLJob can see: a cluster and pods for each RayJob, kept by KubeRay's finalizer
until it has seen the deletion; the cluster taken down once the job has ended; scaling of groups. Owners, Deployments
and the garbage collection of what is orphaned are the real controller-manager's.
"""

from __future__ import annotations

import asyncio
import contextlib
import copy
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Any

from rljob_api.contract import labels
from rljob_operator.kube.client import ApiError
from rljob_operator.kube.objects import (  # fmt: skip
    CONFIG_MAP,
    DEPLOYMENT,
    POD,
    RAY_CLUSTER,
    RAY_JOB,
    RLJOB,
    Kind,
    Obj,
    deleting,
    meta,
    name_of,
)
from rljob_operator.kube.work_queue import WorkQueue, work

from e2e.faults.access import Admin

FINALIZER = "ray.io/rayjob-finalizer"
WATCHED = (RLJOB, RAY_JOB, RAY_CLUSTER, POD, CONFIG_MAP, DEPLOYMENT)
ENDED = ("Complete", "Failed")


@dataclass
class Life:
    """When an object of an attempt was there, in the apiserver's own order of all writes."""

    what: str
    attempt: int
    born: int
    died: int | None = None


class World:
    """The store of what the apiserver has told, and the controller that plays KubeRay and kubelet."""

    def __init__(self, admin: Admin) -> None:
        self.admin = admin
        self._objects: dict[tuple[str, str, str], Obj] = {}
        self._lives: dict[str, dict[str, Life]] = {}
        self._queue: WorkQueue[tuple[str, str, str]] = WorkQueue(distance=0.02, backoff=0.1, backoff_max=2.0)
        self._waiting: set[asyncio.Event] = set()

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[World]:
        """Watching and acting, for as long as the block lasts."""
        tasks = [asyncio.create_task(work(self._queue, self._act)) for _ in range(8)]
        for kind in WATCHED:
            selector = "" if kind is RLJOB else labels.JOB
            tasks.append(asyncio.create_task(self.admin.follow(kind, selector, self._seer(kind))))
        try:
            yield self
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    # Looking

    def get(self, kind: Kind, namespace: str, name: str) -> Obj | None:
        """One object, as last told."""
        return self._objects.get((kind.kind, namespace, name))

    def of(self, kind: Kind, namespace: str) -> list[Obj]:
        """All objects of a kind in a namespace."""
        return [o for (its, where, _), o in self._objects.items() if (its, where) == (kind.kind, namespace)]

    async def until(self, what: str, probe: Callable[[], object], seconds: float = 60.0) -> None:
        """Wait until `probe` holds of what has been told. Raises TimeoutError naming `what`."""
        changed = asyncio.Event()
        self._waiting.add(changed)
        try:
            async with asyncio.timeout(seconds):
                while not probe():
                    changed.clear()
                    await changed.wait()
        except TimeoutError:
            raise TimeoutError(f"{what}: not within {seconds:.0f} s") from None
        finally:
            self._waiting.discard(changed)

    def fence_violations(self, namespace: str) -> list[str]:
        """Attempts of a namespace's job that were there at once, by the versions of their birth and death."""
        lives = list(self._lives.get(namespace, {}).values())
        return [
            f"{other.what} of attempt {other.attempt} was there when {begun.what} was made"
            for begun in lives
            if begun.what.startswith("RayJob ")
            for other in lives
            if other.attempt < begun.attempt and (other.died is None or other.died > begun.born)
        ]

    def forget(self, namespace: str) -> None:
        """Keep nothing of a namespace."""
        self._lives.pop(namespace, None)
        for key in [key for key in self._objects if key[1] == namespace]:
            del self._objects[key]

    def _seer(self, kind: Kind) -> Callable[[str, Obj], None]:
        def see(event: str, obj: Obj) -> None:
            self._see(kind, event, obj)

        return see

    def _see(self, kind: Kind, event: str, obj: Obj) -> None:
        namespace, name = obj["metadata"]["namespace"], name_of(obj)
        self._record(kind, event, obj)
        if event == "DELETED":
            self._objects.pop((kind.kind, namespace, name), None)
        else:
            self._objects[kind.kind, namespace, name] = obj
        match kind.kind:
            case "RayJob":
                self._queue.add(("RayJob", namespace, name))
            case "RayCluster":
                self._queue.add(("RayJob", namespace, name.rsplit("-", 1)[0]))
            case "Pod" if event != "DELETED":
                self._queue.add(("Pod", namespace, name))
        for waiting in self._waiting:
            waiting.set()

    def _record(self, kind: Kind, event: str, obj: Obj) -> None:
        attempt = meta(obj, "labels", labels.ATTEMPT)
        if attempt is None or kind not in (RAY_JOB, RAY_CLUSTER, POD):
            return
        lives = self._lives.setdefault(obj["metadata"]["namespace"], {})
        version = int(obj["metadata"]["resourceVersion"])
        life = lives.setdefault(obj["metadata"]["uid"], Life(f"{kind.kind} {name_of(obj)}", int(attempt), version))
        if event == "DELETED":
            life.died = version

    # Acting

    async def _act(self, key: tuple[str, str, str]) -> float | None:
        kind, namespace, name = key
        try:
            await (self._ray_job(namespace, name) if kind == "RayJob" else self._pod(namespace, name))
        except ApiError as error:
            # 404: gone meanwhile. 403: the namespace is going away, or has no account yet. 409: seen too late.
            if error.status not in (403, 404, 409):
                raise
            return 0.2 if error.status != 404 else None
        return None

    async def _ray_job(self, namespace: str, name: str) -> None:
        ray_job = await self.admin.get(RAY_JOB, namespace, name)
        if ray_job is None:
            return
        finalizers = ray_job["metadata"].get("finalizers") or []
        if deleting(ray_job):
            if FINALIZER in finalizers:
                rest = [f for f in finalizers if f != FINALIZER]
                await self.admin.patch(RAY_JOB, namespace, name, {"metadata": {"finalizers": rest}})
            return
        if FINALIZER not in finalizers:
            await self.admin.patch(RAY_JOB, namespace, name, {"metadata": {"finalizers": [*finalizers, FINALIZER]}})
        status = ray_job.get("status") or {}
        cluster_name = f"{name}-abcde"
        if status.get("jobDeploymentStatus") in ENDED:
            if cluster := await self.admin.get(RAY_CLUSTER, namespace, cluster_name):
                await self.admin.delete(RAY_CLUSTER, namespace, cluster_name, cluster["metadata"]["uid"])
            return
        cluster = await self.admin.get(RAY_CLUSTER, namespace, cluster_name)
        if cluster is None and not status.get("rayClusterName"):
            cluster = await self.admin.create(_cluster(ray_job, cluster_name))
        if not status.get("rayClusterName"):
            told = {"jobDeploymentStatus": "Running", "rayClusterName": cluster_name, "jobStatus": "RUNNING"}
            await self.admin.patch(RAY_JOB, namespace, name, {"status": told}, "status")
        if cluster is not None and not deleting(cluster):
            await self._pods(namespace, cluster)

    async def _pods(self, namespace: str, cluster: Obj) -> None:
        spec = cluster["spec"]
        groups = [("head", spec["headGroupSpec"], 1)]
        groups += [(g["groupName"], g, g.get("replicas") or 0) for g in spec.get("workerGroupSpecs") or []]
        wanted = {
            f"{name_of(cluster)}-{group}-{index}": template["template"]["metadata"]["labels"]
            for group, template, replicas in groups
            for index in range(replicas)
        }
        there = {name_of(p): p for p in await self.admin.list(POD, namespace, _selector(cluster)) or []}
        for name in wanted.keys() - there.keys():
            await self.admin.create(_pod(name, namespace, wanted[name], cluster))
        for name in there.keys() - wanted.keys():
            await self.admin.delete(POD, namespace, name, there[name]["metadata"]["uid"])

    async def _pod(self, namespace: str, name: str) -> None:
        pod = self.get(POD, namespace, name)
        if pod is None or deleting(pod) or (pod.get("status") or {}).get("phase") != "Pending":
            return
        if meta(pod, "labels", labels.ROLE) == "prepare":  # what prepares the data is done at once
            await self.admin.patch(POD, namespace, name, {"status": {"phase": "Succeeded"}}, "status")
            return
        ready = [{"type": kind, "status": "True"} for kind in ("PodScheduled", "Ready", "ContainersReady")]
        await self.admin.patch(POD, namespace, name, {"status": {"phase": "Running", "conditions": ready}}, "status")


def _selector(cluster: Obj) -> str:
    its = cluster["metadata"]["labels"]
    return f"{labels.JOB}={its[labels.JOB]},{labels.ATTEMPT}={its[labels.ATTEMPT]}"


def _owned(owner: Obj) -> list[dict[str, Any]]:
    return [{
        "apiVersion": owner["apiVersion"], "kind": owner["kind"], "name": name_of(owner),
        "uid": owner["metadata"]["uid"], "controller": True, "blockOwnerDeletion": True,
    }]  # fmt: skip


def _cluster(ray_job: Obj, name: str) -> Obj:
    return {
        "apiVersion": RAY_CLUSTER.api_version,
        "kind": RAY_CLUSTER.kind,
        "metadata": {
            "name": name,
            "namespace": ray_job["metadata"]["namespace"],
            "labels": dict(ray_job["metadata"]["labels"]),
            "ownerReferences": _owned(ray_job),
        },
        "spec": copy.deepcopy(ray_job["spec"]["rayClusterSpec"]),
    }


def _pod(name: str, namespace: str, its_labels: dict[str, str], cluster: Obj) -> Obj:
    """A pod that no scheduler takes: it goes at once when it is deleted."""
    return {
        "apiVersion": POD.api_version,
        "kind": POD.kind,
        "metadata": {
            "name": name, "namespace": namespace, "labels": dict(its_labels), "ownerReferences": _owned(cluster),
        },
        "spec": {
            "schedulerName": "nobody",
            "automountServiceAccountToken": False,
            "containers": [{"name": "ray", "image": "example.invalid/ray:none"}],
        },
    }  # fmt: skip
