"""The I/O edge: the few calls of the apiserver that the operator makes, each with a time limit.

Answers of 409 (a write met another), 429 and 5xx, and broken connections are tried again a few times with back-off;
what still fails is raised, and the reconcile is tried again later as a whole.
"""

import asyncio
import logging
import random
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from typing import Any, Protocol

import aiohttp
import orjson

from rljob_operator.kube.objects import EVENT, Kind, Obj, kind_of, name_of
from rljob_operator.kube.trimming import loads, trim

logger = logging.getLogger(__name__)
Objects = list[Obj]
Names = list[tuple[str, str]]
"""Namespaces and names."""
FIELD_MANAGER = "rljob-operator"
TRIES = 4
RETRIED = frozenset({409, 429, 500, 502, 503, 504})
PAGE = 500
NO_VERSION = "1"
"""The version of an empty store: an apply with it meets a conflict wherever there is an object, and creates else."""
WATCH_SILENCE_SECONDS = 90.0
"""A watch without an event or a bookmark (one a minute) for so long is taken for dead."""
CLOCK_TOLERANCE = timedelta(seconds=3)
"""Clocks that differ by less are taken for equal."""


class ApiError(Exception):
    """The apiserver refused, or did not answer."""

    def __init__(self, call: str, status: int | None, message: str, reason: str = "") -> None:
        super().__init__(f"{call}: {status or 'no answer'}: {message}")
        self.status, self.message = status, message
        self.reason = reason


class Kube(Protocol):
    """What a reconcile asks of the cluster."""

    def clock(self) -> datetime:
        """The time, as the cluster has it."""

    async def get(self, kind: Kind, namespace: str, name: str) -> Obj | None:
        """The object; None when there is none."""

    async def list(self, kind: Kind, namespace: str | None, selector: str = "") -> list[Obj] | None:
        """Objects by label selector; None when the kind itself does not exist."""

    async def lists(self, kinds: Sequence[Kind], namespace: str, selector: str) -> Sequence[Objects | None]:
        """The same of several kinds, read at once."""

    async def names(self, kind: Kind, namespace: str | None) -> Names:
        """Namespace and name of all objects of a kind."""

    async def apply(self, obj: Obj, *, absent: bool = False) -> Obj:
        """Server-side apply, as field manager `rljob-operator`, by force. `absent`: ApiError with status 409 when an
        object of that name exists, which is then left as it is."""

    async def create(self, obj: Obj) -> Obj:
        """Create; ApiError with status 409 when it exists."""

    async def patch(self, kind: Kind, namespace: str, name: str, body: Any, subresource: str | None = None) -> Obj:
        """A JSON patch (for a list) or a merge patch (for a map)."""

    async def delete(self, kind: Kind, namespace: str, name: str, uid: str) -> None:
        """Delete the object with this UID, its dependants in the background; nothing when it is gone."""


class HttpKube:
    """`Kube` over HTTPS."""

    def __init__(
        self,
        session: aiohttp.ClientSession,
        server: str,
        headers: Callable[[], dict[str, str]],
        ssl: Any,
        timeout: float,
        manager: str = FIELD_MANAGER,
    ) -> None:
        """`timeout` in seconds limits each call; `manager` is whose fields are written."""
        self._session, self._server, self._headers = session, server.rstrip("/"), headers
        self._ssl, self._timeout = ssl, aiohttp.ClientTimeout(total=timeout)
        self._manager, self._skew = manager, timedelta()

    def clock(self) -> datetime:
        """The time by the apiserver's clock, which deletions and Events are stamped with, wherever ours has got to."""
        return datetime.now(UTC) + self._skew

    def _compare_clocks(self, asked: datetime, date: str | None) -> None:
        """Learn from the Date of an answer (whole seconds) to a call of `asked` (by our clock) how far we are off."""
        answered = datetime.now(UTC)
        try:
            theirs = parsedate_to_datetime(date or "")
        except ValueError:  # a proxy may leave it out
            return
        skew = timedelta()
        if not asked - CLOCK_TOLERANCE < theirs < answered + CLOCK_TOLERANCE:
            skew = theirs - asked - (answered - asked) / 2
        if abs(skew - self._skew) > CLOCK_TOLERANCE:
            self._skew = skew
            logger.warning("the apiserver's clock, which counts, is %+.0f s from ours", skew.total_seconds())

    async def get(self, kind: Kind, namespace: str, name: str) -> Obj | None:
        """See Kube."""
        return await self._call("GET", kind.path(namespace, name), absent=True)

    async def list(self, kind: Kind, namespace: str | None, selector: str = "") -> list[Obj] | None:
        """See Kube."""
        pages = [items async for items, _ in self.pages(kind, namespace, selector)]
        return [item for items in pages for item in items] if pages else None

    async def lists(self, kinds: Sequence[Kind], namespace: str, selector: str) -> Sequence[Objects | None]:
        """See Kube."""
        return await asyncio.gather(*(self.list(kind, namespace, selector) for kind in kinds))

    async def names(self, kind: Kind, namespace: str | None) -> Names:
        """See Kube."""
        pages = self.pages(kind, namespace)
        return [(item["metadata"]["namespace"], name_of(item)) async for items, _ in pages for item in items]

    async def pages(self, kind: Kind, namespace: str | None, selector: str = "") -> AsyncIterator[tuple[Objects, int]]:
        """Objects by label selector, page by page, and the version that they are listed at; no page at all when there
        is no such kind. Thousands of objects at once would take many times the room of what is kept of them."""
        query = {"limit": str(PAGE)} | ({"labelSelector": selector} if selector else {})
        while answer := await self._call("GET", kind.path(namespace), query, absent=True):
            # A list's items do not say their kind.
            named = {"apiVersion": kind.api_version, "kind": kind.kind}
            yield [trim(item | named) for item in answer["items"]], int(answer["metadata"].get("resourceVersion") or 0)
            if not (more := answer["metadata"].get("continue")):
                return
            query["continue"] = more

    async def watch(
        self, kind: Kind, namespace: str | None, selector: str, version: str, seconds: float
    ) -> AsyncIterator[tuple[str, Obj]]:
        """Changes (ADDED, MODIFIED, DELETED, BOOKMARK) and objects after this version, for so many seconds at most.

        One that is silent for too long ends, to be opened anew. Raises ApiError when the connection breaks or the
        version is too old (status 410).
        """
        call, query = f"WATCH {kind.path(namespace)}", {"watch": "true", "allowWatchBookmarks": "true"}
        query |= {"labelSelector": selector, "resourceVersion": version, "timeoutSeconds": str(max(1, round(seconds)))}
        timeout = aiohttp.ClientTimeout(
            total=seconds + 30, connect=self._timeout.total, sock_read=WATCH_SILENCE_SECONDS
        )
        url, headers = self._server + kind.path(namespace), self._headers() | {"Accept": "application/json"}
        try:
            async with self._session.get(
                url, params=query, headers=headers, ssl=self._ssl, timeout=timeout
            ) as response:
                if response.status >= 400:
                    raise ApiError(call, response.status, (await response.text())[:200])
                begun = b""
                async for chunk in response.content.iter_any():
                    *lines, begun = (begun + chunk).split(b"\n")
                    for line in lines:
                        change = loads(line)
                        if change["type"] == "ERROR":
                            status = change["object"]
                            raise ApiError(call, status.get("code"), str(status.get("message")))
                        yield change["type"], change["object"]
        except aiohttp.SocketTimeoutError:
            return  # a quiet kind, or a dead connection: the next one goes on from the same version
        except orjson.JSONDecodeError as error:
            raise ApiError(call, 502, "not JSON") from error
        except (aiohttp.ClientError, TimeoutError) as error:
            raise ApiError(call, None, f"{type(error).__name__} {error}".strip()) from error

    async def apply(self, obj: Obj, *, absent: bool = False) -> Obj:
        """See Kube."""
        path = kind_of(obj).path(obj["metadata"]["namespace"], name_of(obj))
        query, retried = {"fieldManager": self._manager, "force": "true"}, RETRIED
        if absent:  # a version that no object has
            obj, retried = obj | {"metadata": obj["metadata"] | {"resourceVersion": NO_VERSION}}, RETRIED - {409}
        return await self._call("PATCH", path, query, obj, "application/apply-patch+yaml", retried=retried) or {}

    async def create(self, obj: Obj) -> Obj:
        """See Kube."""
        path = kind_of(obj).path(obj["metadata"]["namespace"])
        retried = RETRIED - {409}
        return await self._call("POST", path, {"fieldManager": self._manager}, obj, retried=retried) or {}

    async def patch(self, kind: Kind, namespace: str, name: str, body: Any, subresource: str | None = None) -> Obj:
        """See Kube."""
        flavour = "json-patch" if isinstance(body, list) else "merge-patch"
        query = {"fieldManager": self._manager}
        path = kind.path(namespace, name, subresource)
        # A conflict here means that what was observed is old: the reconcile starts over instead.
        retried = RETRIED - {409}
        return await self._call("PATCH", path, query, body, f"application/{flavour}+json", retried=retried) or {}

    async def delete(self, kind: Kind, namespace: str, name: str, uid: str) -> None:
        """See Kube."""
        body = {"propagationPolicy": "Background", "preconditions": {"uid": uid}}
        try:
            await self._call("DELETE", kind.path(namespace, name), {}, body, retried=RETRIED - {409}, absent=True)
        except ApiError as error:
            if error.status != 409:  # another object of that name by now
                raise

    async def _call(
        self,
        method: str,
        path: str,
        query: Mapping[str, str] | None = None,
        body: Any = None,
        content_type: str = "application/json",
        *,
        absent: bool = False,
        retried: frozenset[int] = RETRIED,
    ) -> Obj | None:
        """One call with its retries; None for 404 with `absent`. Raises ApiError."""
        call = f"{method} {path}"
        for attempt in range(TRIES):
            error, wait = await self._once(method, path, query, body, content_type)
            if not isinstance(error, ApiError):
                return error
            if error.status == 404 and absent:
                return None
            if (error.status is not None and error.status not in retried) or attempt == TRIES - 1:
                raise error
            delay = max(wait, 0.2 * 2**attempt) * random.uniform(0.8, 1.2)
            logger.debug("%s; again in %.1f s", error, delay)
            await asyncio.sleep(delay)
        raise AssertionError(call)

    async def _once(
        self, method: str, path: str, query: Mapping[str, str] | None, body: Any, content_type: str
    ) -> tuple[Obj | ApiError, float]:
        """The answer or the error, and how long the server asks to wait, in seconds."""
        call, asked = f"{method} {path}", datetime.now(UTC)
        try:
            async with self._session.request(
                method,
                self._server + path,
                params=query,
                data=None if body is None else orjson.dumps(body),
                headers=self._headers() | {"Content-Type": content_type, "Accept": "application/json"},
                ssl=self._ssl,
                timeout=self._timeout,
            ) as response:
                self._compare_clocks(asked, response.headers.get("Date"))
                answer: Obj = loads(await response.read() or b"{}")
                if response.status < 400:
                    return answer, 0.0
                wait = response.headers.get("Retry-After", "0")
                error = ApiError(call, response.status, str(answer.get("message", "")), str(answer.get("reason", "")))
                return error, min(float(wait), 10.0) if wait.isdigit() else 0.0
        except orjson.JSONDecodeError:
            return ApiError(call, response.status if response.status >= 400 else 502, "not JSON"), 0.0
        except (aiohttp.ClientError, TimeoutError) as error:
            return ApiError(call, None, f"{type(error).__name__} {error}".strip()), 0.0


def event(job: Obj, name: str, kind: str, reason: str, message: str, time: str) -> Obj:
    """A core/v1 Event about an RLJob. `kind` is Normal or Warning."""
    metadata = job["metadata"]
    return {
        "apiVersion": EVENT.api_version,
        "kind": EVENT.kind,
        "metadata": {"name": name, "namespace": metadata["namespace"]},
        "involvedObject": {
            "apiVersion": job["apiVersion"],
            "kind": job["kind"],
            "name": metadata["name"],
            "namespace": metadata["namespace"],
            "uid": metadata["uid"],
            "resourceVersion": metadata.get("resourceVersion", ""),
        },
        "type": kind,
        "reason": reason,
        "message": message[:1024],
        "firstTimestamp": time,
        "lastTimestamp": time,
        "count": 1,
        "source": {"component": FIELD_MANAGER},
        "reportingComponent": "rljob.io/operator",
        "reportingInstance": FIELD_MANAGER,
    }
