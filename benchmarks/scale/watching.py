"""What is there of one namespace, by watches of its own: beside the operators', so that nobody's word is taken."""

import asyncio
import contextlib
import json
import time
from collections.abc import AsyncIterator, Callable

import aiohttp
import kopf
from rljob_operator.kube.client import ApiError, HttpKube
from rljob_operator.kube.objects import POD, RAY_CLUSTER, RAY_JOB, RLJOB, Kind, Obj, name_of
from rljob_operator.state.pod_diagnosis import ready

CALL_SECONDS = 60.0
MANAGER = "rljob-scale"
"""Whose fields the measurement writes: what the operator wrote itself is no reason for it to look."""


@contextlib.asynccontextmanager
async def connected(kubeconfig: str) -> AsyncIterator[HttpKube]:
    """A client with the text of a kubeconfig of the cluster tooling."""
    config = json.loads(kubeconfig)
    cluster, user = config["clusters"][0]["cluster"], config["users"][0]["user"]
    info = kopf.ConnectionInfo(
        server=cluster["server"],
        ca_data=cluster["certificate-authority-data"],
        certificate_data=user["client-certificate-data"],
        private_key_data=user["client-key-data"],
    )
    async with aiohttp.ClientSession() as session:
        yield HttpKube(session, info.server, dict, info.as_ssl_context(), CALL_SECONDS, MANAGER)


class Scene:
    """The objects of a namespace that a measurement waits for."""

    def __init__(self, kube: HttpKube, namespace: str) -> None:
        self._kube, self._namespace = kube, namespace
        self.ray_jobs: dict[str, str] = {}
        """Status of each RayJob's job, empty before it is submitted."""
        self.ray_clusters: set[str] = set()
        self.pods: set[str] = set()
        self.ready: set[str] = set()
        """Ray pods, and those of them that are ready."""
        self.phases: dict[str, str] = {}
        """Phase of each RLJob."""
        self._changed = asyncio.Event()

    @contextlib.asynccontextmanager
    async def watched(self) -> AsyncIterator[None]:
        """Keep up with the cluster, for as long as the block lasts."""
        kinds = (RAY_JOB, RAY_CLUSTER, POD, RLJOB)
        tasks = [asyncio.create_task(self._follow(kind)) for kind in kinds]
        try:
            yield
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def until(self, what: str, holds: Callable[[], bool], seconds: float) -> float:
        """Wait; the time.monotonic() at which it held. Raises TimeoutError that says how far it came."""
        end = time.monotonic() + seconds
        while not holds():
            left = end - time.monotonic()
            if left <= 0:
                raise TimeoutError(f"{what}: not within {seconds:.0f} s; {self}")
            self._changed.clear()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._changed.wait(), min(left, 1.0))
        return time.monotonic()

    def __str__(self) -> str:
        states = {state: list(self.ray_jobs.values()).count(state) for state in set(self.ray_jobs.values())}
        phases = {phase: list(self.phases.values()).count(phase) for phase in set(self.phases.values())}
        clusters = f"{len(self.ray_clusters)} RayClusters, {len(self.ready)} of {len(self.pods)} pods ready"
        return f"RLJobs {phases}, RayJobs {states}, {clusters}"

    async def _follow(self, kind: Kind) -> None:
        while True:
            try:
                version = ""
                async for items, listed in self._kube.pages(kind, self._namespace):
                    version = str(listed)
                    for obj in items:
                        self._take(kind, "ADDED", obj)
                if not version:
                    raise RuntimeError(f"there is no kind {kind.kind}")
                while True:
                    async for change, obj in self._kube.watch(kind, self._namespace, "", version, 600):
                        version = obj["metadata"]["resourceVersion"]
                        if change != "BOOKMARK":
                            self._take(kind, change, obj)
            except ApiError as error:
                if error.status != 410:
                    await asyncio.sleep(1)

    def _take(self, kind: Kind, change: str, obj: Obj) -> None:
        name, gone, status = name_of(obj), change == "DELETED", obj.get("status") or {}
        if kind == RAY_JOB:
            _keep(self.ray_jobs, name, None if gone else status.get("jobStatus", ""))
        elif kind == RLJOB:
            _keep(self.phases, name, None if gone else status.get("phase", ""))
        elif kind == RAY_CLUSTER:
            (self.ray_clusters.discard if gone else self.ray_clusters.add)(name)
        elif "ray.io/cluster" in (obj["metadata"].get("labels") or {}):
            (self.pods.discard if gone else self.pods.add)(name)
            (self.ready.add if not gone and ready(obj) else self.ready.discard)(name)
        self._changed.set()


def _keep(values: dict[str, str], name: str, value: str | None) -> None:
    if value is None:
        values.pop(name, None)
    else:
        values[name] = value
