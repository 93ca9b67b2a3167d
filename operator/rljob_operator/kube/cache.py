"""The jobs' objects in memory, as bytes: a dict for each of 75,000 objects would take ten times the room.

Versions decide what is newer: of an answer to a write, a watch's event and a listing the latest counts, in whatever
order they arrive. (Kubernetes promises since 1.35 that the versions of one kind can be compared; they are etcd's
revisions in every release.)
"""

import time
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from datetime import datetime
from typing import Any

import orjson
from rljob_api.contract import labels, names

from rljob_operator.kube.client import HttpKube, Names, Objects
from rljob_operator.kube.objects import CHILDREN, POD, RAY_JOB, RLJOB, WORKLOAD, Kind, Obj, meta, name_of
from rljob_operator.kube.trimming import trim

Job = tuple[str, str]
"""Namespace and name of an RLJob."""
_Objects = dict[str, tuple[int, bytes]]
"""By name: version and JSON."""
TOMBSTONE_SECONDS = 600.0
"""So long after an object's end an old answer that still speaks of it is known to be old."""
_CACHED = frozenset(kind.kind for kind in (*CHILDREN, POD, WORKLOAD))
_OF_JOB = f"{labels.JOB}="


class Cache:
    """Objects by job and kind."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._jobs: dict[Job, dict[str, _Objects]] = {}
        self._gone: dict[tuple[str, str, str], tuple[int, float]] = {}
        """Kind, namespace, name: version of the end, and when it was heard of."""
        self._clock = clock
        self.missing: set[str] = set()
        """Kinds that the apiserver does not know."""

    def put(self, obj: Obj) -> bool:
        """Take in an object that says its kind; whether anything that is kept of it has changed."""
        job = job_of(obj)
        if job is None:
            return False
        version, text = _pack(obj)
        gone = self._gone.get((obj["kind"], job[0], name_of(obj)))
        if gone and version <= gone[0]:
            return False
        objects = self._jobs.setdefault(job, {}).setdefault(obj["kind"], {})
        old = objects.get(name_of(obj))
        if old and version <= old[0]:
            return False
        objects[name_of(obj)] = (version, text)
        return old is None or old[1] != text

    def drop(self, obj: Obj) -> bool:
        """An object has come to its end, at the version that it says; whether it was there."""
        job = job_of(obj)
        if job is None:
            return False
        version, now = int(obj["metadata"]["resourceVersion"]), self._clock()
        self._bury((obj["kind"], job[0], name_of(obj)), version, now)
        return self._remove(job, obj["kind"], name_of(obj), version)

    async def replace(
        self, kind: Kind, namespace: str | None, pages: AsyncIterator[tuple[Iterable[Obj], int]]
    ) -> tuple[set[Job], set[tuple[str, str]], int | None]:
        """Take in a whole listing, of one namespace or all, page by page, each with the listing's version.

        The jobs for which anything changed, namespace and name of what was listed, and the version; None for it when
        there was no page: the kind does not exist.
        """
        changed: set[Job] = set()
        listed: set[tuple[str, str]] = set()
        version: int | None = None
        async for objects, at in pages:
            version = at
            for obj in objects:
                listed.add((obj["metadata"]["namespace"], name_of(obj)))
                if self.put(obj) and (job := job_of(obj)):
                    changed.add(job)
        if version is None:
            return changed, listed, None
        for job, kinds in list(self._jobs.items()):
            if namespace is not None and job[0] != namespace:
                continue
            for name in list(kinds.get(kind.kind, ())):
                # What is newer than the listing was made meanwhile.
                if (job[0], name) not in listed and self._remove(job, kind.kind, name, version):
                    changed.add(job)
        return changed, listed, version

    def get(self, kind: Kind, namespace: str, name: str) -> Obj | None:
        """An RLJob."""
        found = self._jobs.get((namespace, name), {}).get(kind.kind, {}).get(name)
        return _unpack(*found) if found else None

    def of_job(self, kind: Kind, job: Job) -> list[Obj] | None:
        """Objects of a kind with the job's label, by name; None when the kind itself does not exist."""
        if kind.kind in self.missing:
            return None
        return [_unpack(*found) for _, found in sorted(self._jobs.get(job, {}).get(kind.kind, {}).items())]

    def _remove(self, job: Job, kind: str, name: str, version: int) -> bool:
        kinds = self._jobs.get(job, {})
        old = kinds.get(kind, {}).get(name)
        if old is None or old[0] > version:
            return False
        del kinds[kind][name]
        if not kinds[kind]:
            del kinds[kind]
        if not kinds:
            del self._jobs[job]
        return True

    def _bury(self, key: tuple[str, str, str], version: int, now: float) -> None:
        self._gone.pop(key, None)  # so that the order is that of time
        self._gone[key] = (version, now)
        while (first := next(iter(self._gone.items()))) and now - first[1][1] > TOMBSTONE_SECONDS:
            del self._gone[first[0]]


class CachedKube:
    """Reads of an RLJob and of what has its label come from the cache; all else goes to the apiserver."""

    def __init__(self, live: HttpKube, cache: Cache) -> None:
        self.live, self._cache = live, cache

    def clock(self) -> datetime:
        """See Kube."""
        return self.live.clock()

    async def get(self, kind: Kind, namespace: str, name: str) -> Obj | None:
        """See Kube."""
        if kind == RLJOB:
            return self._cache.get(kind, namespace, name)
        # Who asks for a child by name wants to know whether somebody else has the name: that has no label of ours.
        return await self.live.get(kind, namespace, name)

    async def list(self, kind: Kind, namespace: str | None, selector: str = "") -> list[Obj] | None:
        """See Kube."""
        if namespace and kind.kind in _CACHED and selector.startswith(_OF_JOB):
            return self._cache.of_job(kind, (namespace, selector.removeprefix(_OF_JOB)))
        return await self.live.list(kind, namespace, selector)

    async def names(self, kind: Kind, namespace: str | None) -> Names:
        """See Kube."""
        if kind != RLJOB:
            return await self.live.names(kind, namespace)
        _, listed, _ = await self._cache.replace(kind, namespace, self.live.pages(kind, namespace))
        return sorted(listed)

    async def lists(self, kinds: Sequence[Kind], namespace: str, selector: str) -> Sequence[Objects | None]:
        """See Kube."""
        # One after the other: a task for each costs more than the answer from memory.
        return [await self.list(kind, namespace, selector) for kind in kinds]

    async def apply(self, obj: Obj, *, absent: bool = False) -> Obj:
        """See Kube."""
        return self._remember(await self.live.apply(obj, absent=absent))

    async def create(self, obj: Obj) -> Obj:
        """See Kube."""
        return self._remember(await self.live.create(obj))

    async def patch(self, kind: Kind, namespace: str, name: str, body: Any, subresource: str | None = None) -> Obj:
        """See Kube."""
        return self._remember(await self.live.patch(kind, namespace, name, body, subresource))

    async def delete(self, kind: Kind, namespace: str, name: str, uid: str) -> None:
        """See Kube."""
        await self.live.delete(kind, namespace, name, uid)

    def _remember(self, answer: Obj) -> Obj:
        if answer.get("kind") in _CACHED or answer.get("kind") == RLJOB.kind:
            self._cache.put(answer)
        return answer


def job_of(obj: Obj) -> Job | None:
    """The job that an object belongs to, by its label; None when it belongs to none."""
    if obj["kind"] == WORKLOAD.kind:
        name = _of_workload(obj)
    else:
        name = name_of(obj) if obj["kind"] == RLJOB.kind else meta(obj, "labels", labels.JOB)
    return (obj["metadata"]["namespace"], name) if name else None


def _of_workload(obj: Obj) -> str | None:
    """By the name of the RayJob that it is for, as it has no label of ours. (Whose RayJob that is, its UID tells.)"""
    owners = obj["metadata"].get("ownerReferences") or []
    return next((names.job_of(o["name"]) for o in owners if o["kind"] == RAY_JOB.kind and o.get("controller")), None)


def _pack(obj: Obj) -> tuple[int, bytes]:
    small = trim(obj)
    version = small["metadata"].pop("resourceVersion")  # a dict of its own
    # A copy, since orjson's own bytes lie in a buffer several times their length: 230 MB for 5,000 jobs.
    return int(version), bytes(memoryview(orjson.dumps(small, option=orjson.OPT_SORT_KEYS)))


def _unpack(version: int, text: bytes) -> Obj:
    obj: Obj = orjson.loads(text)
    obj["metadata"]["resourceVersion"] = str(version)
    return obj
