"""An apiserver as a test would have it answer, over HTTP."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
from aiohttp import web
from rljob_operator.kube.client import HttpKube


@asynccontextmanager
async def serving(answer: Any, token: str = "", seconds: float = 5.0) -> AsyncIterator[HttpKube]:
    """A client of an apiserver that answers every request by `answer`."""
    app = web.Application()
    app.router.add_route("*", "/{tail:.*}", answer)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    port = site._server.sockets[0].getsockname()[1]  # type: ignore[union-attr]
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    async with aiohttp.ClientSession() as session:
        yield HttpKube(session, f"http://127.0.0.1:{port}", lambda: headers, False, seconds)
    await runner.cleanup()
