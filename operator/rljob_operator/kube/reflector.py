"""Keeping the cache in line with the cluster: a listing, then a watch from there, for each kind; then all over again.

The listing is repeated with every resync, so that what a watch has lost in silence is seen after one period at most.
Whatever else ends a watch or a listing, an error or nothing at all, there is a pause before the next, which grows until
a watch has lived for a while or has told something new and ended in order: a listing of thousands of objects is dear.
"""

import asyncio
import logging
import random
from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager

from rljob_api.contract import labels

from rljob_operator.kube.cache import Cache, job_of
from rljob_operator.kube.client import FIELD_MANAGER, ApiError, HttpKube
from rljob_operator.kube.objects import CHILDREN, POD, RAY_CLUSTER, RAY_JOB_ENDED, WORKLOAD, Kind, Obj, deleting
from rljob_operator.kube.work_queue import background

logger = logging.getLogger(__name__)
MISSING_SECONDS = 10.0
"""How often a kind that does not exist is looked for."""
COMING_UP_SECONDS = 2.0
"""How long a Ray cluster that comes up is left alone: each of its pods changes several times on the way, and nothing is
to be done about it."""
BACKOFF_SECONDS, BACKOFF_MAX_SECONDS = 0.5, 20.0
LIVED_SECONDS = 5.0
"""A watch that has lived for so long works, whatever ends it."""


class Backoff:
    """How long to wait after a failure: longer with each one in a row, until something has worked again."""

    def __init__(self) -> None:
        self.failures = 0
        """In a row."""

    def failed(self) -> float:
        """Seconds to wait now."""
        self.failures += 1
        delay = min(BACKOFF_MAX_SECONDS, BACKOFF_SECONDS * 2.0 ** min(self.failures - 1, 16))
        return delay * random.uniform(0.8, 1.2)

    def worked(self) -> None:
        """The next failure is the first one."""
        self.failures = 0


class Reflectors:
    """One reflector for each kind and namespace; `look_at(namespace, job, seconds)` is called for what
    changes, with the time that it may wait."""

    def __init__(
        self,
        kube: HttpKube,
        cache: Cache,
        look_at: Callable[[str, str, float], None],
        namespaces: Sequence[str],
        resync_seconds: float,
        *,
        kueue: bool = False,
    ) -> None:
        """`namespaces`: those that are served; none: all. `kueue`: Workloads, too, which are not waited for."""
        self._kube, self._cache, self._look_at, self._resync = kube, cache, look_at, resync_seconds
        self._scopes = [(kind, namespace) for kind in (POD, *CHILDREN) for namespace in (namespaces or (None,))]
        self._waiting = set(self._scopes)
        if kueue:
            self._scopes += [(WORKLOAD, namespace) for namespace in (namespaces or (None,))]
        self.synced = asyncio.Event()
        """Set once every kind has been listed."""

    def running(self) -> AbstractAsyncContextManager[None]:
        """Reflect, for as long as the block lasts."""
        return background(self._reflect(*scope) for scope in self._scopes)

    async def _reflect(self, kind: Kind, namespace: str | None) -> None:
        backoff = Backoff()
        while True:
            try:
                version = await self._list(kind, namespace)
                self._waiting.discard((kind, namespace))
                if not self._waiting:
                    self.synced.set()
                await self._follow(kind, namespace, version, backoff)
            except Exception as error:  # noqa: BLE001 - a kind that is no longer reflected is worse than any error
                delay = backoff.failed()
                what = str(error) if isinstance(error, ApiError) else f"{type(error).__name__}: {error}"
                # A version that is too old for a watch, once, is nothing to worry about.
                aged = isinstance(error, ApiError) and error.status == 410 and backoff.failures == 1
                level = logging.DEBUG if aged else logging.WARNING
                logger.log(level, "reflecting %s: %s; again in %.1f s", kind.plural, what, delay)
                await asyncio.sleep(delay)

    async def _list(self, kind: Kind, namespace: str | None) -> str | None:
        """Bring the cache in line; the version to watch from, None when the kind does not exist."""
        pages = self._kube.pages(kind, namespace, _selector(kind))
        changed, _, version = await self._cache.replace(kind, namespace, pages)
        if version is None:
            self._cache.missing.add(kind.kind)
            return None
        self._cache.missing.discard(kind.kind)
        for job in changed:
            self._look_at(*job, 0.0)
        return str(version)

    async def _follow(self, kind: Kind, namespace: str | None, version: str | None, backoff: Backoff) -> None:
        """Take in what changes, until it is time for the next listing. Only here can be seen that something works: a
        listing that is answered says nothing of the watch, for whose sake it is made again."""
        if version is None:
            await asyncio.sleep(MISSING_SECONDS)
            return
        clock = asyncio.get_running_loop().time
        end = clock() + self._resync * random.uniform(0.8, 1.2)
        while (left := end - clock()) > 0:
            begun, told = clock(), False
            try:
                async for change, obj in self._kube.watch(kind, namespace, _selector(kind), version, left):
                    before, version = version, obj["metadata"]["resourceVersion"]
                    told = told or version != before
                    if change != "BOOKMARK":
                        self._take(change, obj)
            finally:
                if lived := clock() - begun >= LIVED_SECONDS:
                    backoff.worked()
            if told:
                backoff.worked()
            if not lived:
                await asyncio.sleep(min(left, backoff.failed()))

    def _take(self, change: str, obj: Obj) -> None:
        changed = self._cache.drop(obj) if change == "DELETED" else self._cache.put(obj)
        if changed and (change == "DELETED" or not _ours_alone(obj)) and (job := job_of(obj)):
            self._look_at(*job, COMING_UP_SECONDS if change != "DELETED" and comes_up(obj) else 0.0)


def _selector(kind: Kind) -> str:
    return labels.WORKLOAD_OF if kind == WORKLOAD else labels.JOB


def _ours_alone(obj: Obj) -> bool:
    """Whether nobody but the operator has written the object: it need not be told."""
    managers = obj["metadata"].get("managedFields") or [{}]
    return all(entry.get("manager") == FIELD_MANAGER for entry in managers)


def comes_up(obj: Obj) -> bool:
    """Whether the object is part of a Ray cluster that starts or runs, as far as it says itself."""
    if deleting(obj):
        return False
    status = obj.get("status") or {}
    match obj["kind"]:
        case "Pod":
            return status.get("phase") in (None, "Pending", "Running")
        case "RayJob":
            # One that Kueue suspends is being evicted: to be seen before it is admitted again.
            suspended = (obj.get("spec") or {}).get("suspend")
            return not suspended and status.get("jobDeploymentStatus") not in RAY_JOB_ENDED
        case kind:
            return bool(kind == RAY_CLUSTER.kind)
