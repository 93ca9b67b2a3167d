"""`Kube` that answers from memory what is watched, and remembers the answers to its own writes."""

from collections.abc import Sequence
from datetime import datetime
from typing import Any

from rljob_api.contract import labels

from rljob_operator.kube.client import HttpKube, Names, Objects
from rljob_operator.kube.objects import CHILDREN, POD, RLJOB, WORKLOAD, Kind, Obj
from rljob_operator.kube.store import Cache

_CACHED = frozenset(kind.kind for kind in (*CHILDREN, POD, WORKLOAD))
_OF_JOB = f"{labels.JOB}="


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
