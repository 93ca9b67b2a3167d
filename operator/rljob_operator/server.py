"""/healthz, /readyz and /metrics of the operator."""

from collections.abc import Callable

from aiohttp import web
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from rljob_operator.kube.work_queue import Canary
from rljob_operator.metrics import Metrics


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
