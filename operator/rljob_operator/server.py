"""/healthz, /readyz and /metrics of the operator."""

import time
from collections.abc import Callable

from aiohttp import web
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from rljob_operator.metrics import Metrics


class Canary:
    """Alive is an operator whose queue really does work, not one that answers HTTP.

    A canary key is put into the queue regularly and beats when a worker gets to it.
    """

    def __init__(self, limit: float, clock: Callable[[], float] = time.monotonic) -> None:
        """Dead after `limit` seconds without a beat."""
        self._limit, self._clock = limit, clock
        self._last = clock()

    def beat(self) -> None:
        """A worker got to the canary."""
        self._last = self._clock()

    @property
    def age(self) -> float:
        """Seconds since the last beat."""
        return self._clock() - self._last

    @property
    def alive(self) -> bool:
        """Whether the last beat is recent."""
        return self.age < self._limit


async def serve(port: int, canary: Canary, ready: Callable[[], bool], metrics: Metrics) -> web.AppRunner:
    """Start the server; the caller closes it by `cleanup()`."""

    async def healthz(_: web.Request) -> web.Response:
        text = f"the queue last worked {canary.age:.0f} s ago\n"
        return web.Response(text=text, status=200 if canary.alive else 503)

    async def readyz(_: web.Request) -> web.Response:
        is_ready = ready()
        return web.Response(
            text="ready\n" if is_ready else "not all jobs have been listed yet\n", status=200 if is_ready else 503
        )

    async def expose(_: web.Request) -> web.Response:
        metrics.canary_age.set(canary.age)
        return web.Response(body=generate_latest(metrics.registry), headers={"Content-Type": CONTENT_TYPE_LATEST})

    app = web.Application()
    app.add_routes([web.get("/healthz", healthz), web.get("/readyz", readyz), web.get("/metrics", expose)])
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "0.0.0.0", port).start()
    return runner
