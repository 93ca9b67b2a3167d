"""The writes of a reconcile: to the job's children, each tried on its own, so that a refused one stops no other; then
to the status, which may wait a little; then Events and finalizers."""

import logging
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from typing import Any

from rljob_api.contract import labels

from rljob_operator.controller.plan import Plan
from rljob_operator.kube.client import ApiError, Kube, event
from rljob_operator.kube.diff import digest
from rljob_operator.kube.objects import RAY_CLUSTER, RLJOB, Obj, controlled_by, kind_of, name_of, rfc3339
from rljob_operator.state.observe import Observed
from rljob_operator.state.refusals import Job, Key, NameConflictError, Refusals, Verb, needed

logger = logging.getLogger(__name__)

_COUNTS = frozenset({"head", "trainer", "rollout", "retriever", "rolloutReplicas", "message", "preparation"})


@dataclass(frozen=True)
class _Write:
    verb: Verb
    obj: Obj
    content: object
    """What tells this write from another of the same verb and object."""
    do: Callable[[], Awaitable[object]]
    needed: bool = False

    @property
    def key(self) -> Key:
        return self.verb, self.obj["kind"], name_of(self.obj)

    def digest(self) -> str:
        return digest({"content": self.content})


class Writes:
    """The writes of one reconcile of one job."""

    def __init__(self, kube: Kube, job: Job, refusals: Refusals) -> None:
        self._kube, self._job, self._refusals = kube, job, refusals
        self._tried: set[tuple[Key, str]] = set()

    async def children(self, observed: Observed, wanted: Plan) -> None:
        """Apply, create and delete; a plan that is made anew after a refusal is written without what was tried before.

        What is refused, the Refusals know afterwards. Nothing is created that lacks what it needs. Raises ApiError when
        the apiserver does not answer, or is not well.
        """
        applies = [self._apply(observed, child) for child in wanted.apply]
        creates = [
            _Write("create", child, child, partial(self._create, observed.job, child)) for child in wanted.create
        ]
        deletes = [
            _Write("delete", child, child["metadata"]["uid"], partial(self._delete, child)) for child in wanted.delete
        ]
        for write in applies:
            await self._try(write)
        if any(refusal.needed for refusal in self._refusals.known(self._job)):
            creates = []
        for write in (*creates, *deletes):
            await self._try(write)
        self._refusals.asked(self._job, {write.key for write in (*applies, *creates, *deletes, *self._scales(wanted))})

    async def scales(self, wanted: Plan) -> bool:
        """Scale Ray clusters; whether a refusal has been met that the status does not tell of yet. Raises ApiError."""
        return any([await self._try(write) for write in self._scales(wanted)])

    def _apply(self, observed: Observed, child: Obj) -> _Write:
        live = observed.child(child["kind"], name_of(child))
        do = partial(self._make, observed.job, child) if live is None else partial(self._kube.apply, child)
        return _Write("apply", child, child, do, needed(child, live))

    def _scales(self, wanted: Plan) -> list[_Write]:
        return [_Write("scale", target, by, partial(self._scale, target, by)) for target, by in wanted.patch]

    async def _try(self, write: _Write) -> bool:
        """Write, unless that was refused a moment ago; whether it is refused in a way that is new."""
        if self._refusals.waits(self._job, write.key, write.digest):
            return False
        tried = (write.key, write.digest())
        if tried in self._tried:
            return False
        self._tried.add(tried)
        try:
            await write.do()
        except (ApiError, NameConflictError) as error:
            noted = self._refusals.failed(self._job, *tried, error, needed=write.needed)
            if noted is None:
                raise
            refusal, new = noted
            logger.log(logging.WARNING if new else logging.DEBUG, "%s/%s: %s", *self._job, refusal.text)
            return new
        self._refusals.done(self._job, write.key)
        return False

    async def _make(self, job: Obj, child: Obj) -> None:
        """The first apply under a name: a forced one would take over whatever has it."""
        try:
            await self._kube.apply(child, absent=True)
        except ApiError as error:
            if error.status != 409:
                raise
            await self._check_own(job, child)
            await self._kube.apply(child)

    async def _create(self, job: Obj, child: Obj) -> None:
        try:
            await self._kube.create(child)
        except ApiError as error:
            # A conflict of another kind, as between two that take from a quota at once, has created nothing.
            if error.status != 409 or not await self._check_own(job, child):
                raise

    async def _check_own(self, job: Obj, child: Obj) -> bool:
        """Whether there is such an object. Raises NameConflictError when it is not the job's."""
        existing = await self._kube.get(kind_of(child), child["metadata"]["namespace"], name_of(child))
        if existing is not None and not controlled_by(existing, job["metadata"]["uid"]):
            raise NameConflictError(
                f"{child['kind']} {name_of(child)} exists and does not belong to this job: rename the job or remove it"
            )
        return existing is not None

    async def _delete(self, child: Obj) -> None:
        metadata = child["metadata"]
        await self._kube.delete(kind_of(child), metadata["namespace"], metadata["name"], metadata["uid"])

    async def _scale(self, cluster: Obj, operations: list[dict[str, Any]]) -> None:
        await self._kube.patch(RAY_CLUSTER, cluster["metadata"]["namespace"], name_of(cluster), operations)


class StatusThrottle[K]:
    """Statuses that wait a little, by job: those that count pods differently, and say nothing else that is new.

    Pods come up one after the other, and each of them would cost a write. What a plan does next never depends on such a
    status, so nothing is lost when the operator dies in between: the next look finds the same again.
    """

    def __init__(self, seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
        """At most `seconds` late."""
        self._seconds, self._clock = seconds, clock
        self._since: dict[K, float] = {}

    def left(self, key: K, old: Mapping[str, Any], new: Mapping[str, Any]) -> float:
        """Seconds for which the new status of a job may wait for more; 0: it is to be written now."""
        if not only_counts(old, new):
            self._since.pop(key, None)
            return 0.0
        left = self._since.setdefault(key, self._clock()) + self._seconds - self._clock()
        if left <= 0:
            del self._since[key]
        return max(0.0, left)

    def forget(self, key: K) -> None:
        """Nothing waits for this job any more."""
        self._since.pop(key, None)


def only_counts(old: Mapping[str, Any], new: Mapping[str, Any]) -> bool:
    """Whether two statuses of a job differ in counts of pods, and the words about them, alone."""
    if any(old.get(key) != new.get(key) for key in (old.keys() | new.keys()) - _COUNTS - {"conditions"}):
        return False
    return _bare(old) == _bare(new)


def _bare(status: Mapping[str, Any]) -> list[dict[str, Any]]:
    return [
        {key: value for key, value in condition.items() if key != "message"}
        for condition in status.get("conditions") or []
    ]


async def write_status(kube: Kube, job: Obj, status: Mapping[str, Any]) -> None:
    metadata = job["metadata"]
    body = {
        "metadata": {"resourceVersion": metadata["resourceVersion"]},
        "status": merge_patch(job.get("status") or {}, status),
    }
    await kube.patch(RLJOB, metadata["namespace"], metadata["name"], body, subresource="status")


def merge_patch(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, Any]:
    """The merge patch (RFC 7386) from one map to another."""
    patch: dict[str, Any] = {key: None for key in old if key not in new}
    for key, value in new.items():
        before = old.get(key)
        if isinstance(before, Mapping) and isinstance(value, Mapping):
            if inner := merge_patch(before, value):
                patch[key] = inner
        elif before != value:
            patch[key] = value
    return patch


async def add_finalizer(kube: Kube, job: Obj) -> None:
    answer = await _set_finalizers(kube, job, [*_finalizers(job), labels.FINALIZER])
    job["metadata"] |= {"resourceVersion": answer["metadata"]["resourceVersion"], "finalizers": _finalizers(answer)}


async def finish(kube: Kube, observed: Observed, wanted: Plan, now: datetime) -> None:
    """What comes after the status: Events, and the end of a job that is deleted."""
    job = observed.job
    for its in wanted.events:
        name = its.name(observed.name, job["metadata"]["uid"], rfc3339(now))
        logger.info("%s/%s: %s: %s", job["metadata"]["namespace"], observed.name, its.reason, its.message)
        body = event(job, name, its.kind, str(its.reason), its.message, rfc3339(now))
        try:
            await kube.create(body)
        except ApiError as error:
            # An Event is a courtesy: the status says the same. 409: written before a crash.
            if error.status != 409:
                logger.warning("Event %s of %s was not written: %s", its.reason, observed.name, error)
    if wanted.finalizer == "remove":
        await _set_finalizers(kube, job, [f for f in _finalizers(job) if f != labels.FINALIZER])


def _finalizers(job: Obj) -> list[str]:
    return list(job["metadata"].get("finalizers") or [])


async def _set_finalizers(kube: Kube, job: Obj, finalizers: list[str]) -> Obj:
    metadata = job["metadata"]
    # The version makes the write fail when anything has changed since: lists cannot be merged.
    body = {"metadata": {"finalizers": finalizers, "resourceVersion": metadata["resourceVersion"]}}
    return await kube.patch(RLJOB, metadata["namespace"], metadata["name"], body)
