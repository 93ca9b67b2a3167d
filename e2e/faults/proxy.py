"""A proxy between one operator and the apiserver: it counts the writes, and does to a call what a fault wants.

It listens on loopback without TLS and speaks to the apiserver with the admin's certificate, so it is for tests alone.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

import aiohttp
from aiohttp import web

from e2e.faults.access import Access

WRITES = frozenset({"POST", "PUT", "PATCH", "DELETE"})
_HOP = frozenset(
    {"authorization", "connection", "keep-alive", "transfer-encoding", "content-length", "host", "te", "upgrade"}
)


@dataclass(frozen=True)
class Call:
    """One request of the operator."""

    method: str
    path: str
    write: int
    """This is the n-th write since the proxy began; 0 for a read."""
    watch: bool

    def __str__(self) -> str:
        return f"{self.method} {self.path}"


@dataclass(frozen=True)
class Answer:
    """What the proxy says in the apiserver's place."""

    status: int
    reason: str
    headers: dict[str, str] = field(default_factory=dict)

    def response(self) -> web.Response:
        """As the apiserver would word it."""
        body = {
            "kind": "Status", "apiVersion": "v1", "status": "Failure", "code": self.status,
            "reason": self.reason, "message": f"injected: {self.reason}",
        }  # fmt: skip
        return web.Response(
            status=self.status, text=json.dumps(body), content_type="application/json", headers=self.headers
        )


class CutError(Exception):
    """Close the connection without an answer."""


class Fault:
    """What happens to calls; this one lets all of them pass. Each hook may raise CutError."""

    async def before(self, call: Call) -> Answer | None:
        """Called before a call is forwarded; an Answer takes the apiserver's place."""
        return None

    async def after(self, call: Call, status: int) -> None:
        """Called when the apiserver has answered, before the operator hears of it."""

    def watch_seconds(self, call: Call) -> float | None:
        """A watch is cut after so many seconds; None: it lasts."""
        return None

    def mute(self, call: Call) -> bool:
        """Whether a watch stays open and says nothing."""
        return False


class Proxy:
    """One listening address in front of the apiserver."""

    def __init__(self, access: Access, fault: Fault | None = None) -> None:
        self._access, self.fault = access, fault or Fault()
        self.port = 0
        self.writes: list[str] = []
        """Every write, in order."""
        self.requests: Counter[str] = Counter()
        """Requests by method; watches apart, as WATCH."""
        self._open: dict[asyncio.Task[object], asyncio.Transport] = {}
        self._runner: web.AppRunner | None = None
        self._session: aiohttp.ClientSession | None = None

    @property
    def total(self) -> int:
        """All requests so far."""
        return sum(self.requests.values())

    @contextlib.asynccontextmanager
    async def serving(self) -> AsyncIterator[Proxy]:
        """Listening, for as long as the block lasts."""
        connector = aiohttp.TCPConnector(limit=0)
        async with aiohttp.ClientSession(connector=connector, auto_decompress=False) as self._session:
            try:
                await self.listen()
                yield self
            finally:
                await self.vanish()

    async def listen(self) -> None:
        """Take connections, on the port of before if there was one."""
        app = web.Application(client_max_size=2**24)
        app.router.add_route("*", "/{path:.*}", self._handle)
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", self.port, reuse_address=True)
        await site.start()
        self.port = runner.addresses[0][1]
        self._runner = runner

    async def vanish(self) -> None:
        """The apiserver is gone: connections break, new ones are refused."""
        runner, self._runner = self._runner, None
        for task, transport in list(self._open.items()):
            transport.abort()
            task.cancel()
        if runner:
            await runner.cleanup()

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        watch = request.query.get("watch") in ("1", "true")
        self.requests["WATCH" if watch else request.method] += 1
        write = 0
        if request.method in WRITES:
            self.writes.append(f"{request.method} {request.path}")
            write = len(self.writes)
        call = Call(request.method, request.path, write, watch)
        transport, task = request.transport, asyncio.current_task()
        if transport is None or task is None:
            return web.Response()
        self._open[task] = transport
        try:
            if answer := await self.fault.before(call):
                return answer.response()
            return await self._forward(request, call)
        except CutError:
            transport.abort()
            return web.Response()
        finally:
            del self._open[task]

    async def _forward(self, request: web.Request, call: Call) -> web.StreamResponse:
        assert self._session is not None
        headers = {k: v for k, v in request.headers.items() if k.lower() not in _HOP} | dict(self._access.headers)
        body = await request.read()
        try:
            async with self._session.request(
                request.method,
                self._access.server + request.path_qs,
                data=body or None,
                headers=headers,
                ssl=self._access.ssl,
                timeout=aiohttp.ClientTimeout(total=None if call.watch else 60),
            ) as upstream:
                passed = {k: v for k, v in upstream.headers.items() if k.lower() not in _HOP}
                if not call.watch:
                    content = await upstream.read()
                    await self.fault.after(call, upstream.status)
                    return web.Response(status=upstream.status, headers=passed, body=content)
                await self.fault.after(call, upstream.status)
                return await self._stream(request, call, upstream, passed)
        except aiohttp.ClientError as error:
            raise CutError from error

    async def _stream(
        self, request: web.Request, call: Call, upstream: aiohttp.ClientResponse, headers: dict[str, str]
    ) -> web.StreamResponse:
        response = web.StreamResponse(status=upstream.status, headers=headers)
        await response.prepare(request)
        try:
            async with asyncio.timeout(self.fault.watch_seconds(call)):
                async for chunk in upstream.content.iter_any():
                    if not self.fault.mute(call):
                        await response.write(chunk)
        except TimeoutError as end:
            raise CutError from end
        except ConnectionResetError:  # the operator went away
            return response
        await response.write_eof()
        return response
