"""A retriever over real HTTP that answers as a test tells it to."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

from aiohttp import web

Handler = Callable[[dict[str, Any]], Awaitable[web.StreamResponse]]


class FakeRetriever:
    """Counts requests; `handler` answers the body of each."""

    def __init__(self, handler: Handler | None = None) -> None:
        self.handler = handler or self.echo
        self.bodies: list[dict[str, Any]] = []
        self.under_way = self.most_under_way = 0
        self.url = ""

    @staticmethod
    async def echo(body: dict[str, Any]) -> web.StreamResponse:
        """One document per query, which names the query."""
        found = [
            [{"document": {"id": str(i), "contents": f'"{query}"\nabout {query}'}, "score": 1.0}]
            for i, query in enumerate(body["queries"])
        ]
        return web.json_response({"result": found})

    @property
    def queries(self) -> list[str]:
        return [query for body in self.bodies for query in body["queries"]]

    async def handle(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        self.bodies.append(body)
        self.under_way += len(body["queries"])
        self.most_under_way = max(self.most_under_way, self.under_way)
        try:
            return await self.handler(body)
        finally:
            self.under_way -= len(body["queries"])


@asynccontextmanager
async def running(handler: Handler | None = None) -> AsyncIterator[FakeRetriever]:
    retriever = FakeRetriever(handler)
    app = web.Application()
    app.router.add_post("/retrieve", retriever.handle)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    host, port = runner.addresses[0][:2]
    retriever.url = f"http://{host}:{port}"
    try:
        yield retriever
    finally:
        await asyncio.wait_for(runner.cleanup(), 10)
