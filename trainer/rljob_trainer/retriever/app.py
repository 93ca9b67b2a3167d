"""The HTTP service: Search-R1's /retrieve, health, readiness, metrics."""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Annotated, Any

import orjson
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import Response
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from pydantic import BaseModel, Field

from rljob_trainer.retriever.batching import Closed, Coalescer, QueueFull
from rljob_trainer.retriever.metrics import RetrieverMetrics
from rljob_trainer.retriever.search import Hit, Searcher

log = logging.getLogger(__name__)

MAX_TOPK = 100
MAX_QUERIES = 4096
MAX_QUERY_CHARACTERS = 32768


class RetrieveRequest(BaseModel):
    """Body of POST /retrieve."""

    queries: Annotated[
        list[Annotated[str, Field(max_length=MAX_QUERY_CHARACTERS)]], Field(min_length=1, max_length=MAX_QUERIES)
    ]
    """One or more queries. A blank one finds nothing."""
    topk: Annotated[int, Field(ge=1, le=MAX_TOPK)] | None = None
    """Documents per query; by default the service's `topk`."""
    return_scores: bool = False
    """Answer `{"document", "score"}` in place of the bare documents."""


@dataclass(frozen=True, slots=True)
class Limits:
    """How the service batches and what it takes in."""

    topk: int = 3
    max_batch: int = 512
    window: float = 0.002
    """Seconds."""
    max_queued: int = 4096
    request_timeout: float = 60.0
    """Seconds until a request is answered 504."""
    drain_timeout: float = 20.0
    """Seconds for what waits when the service is told to stop."""


class Service:
    """State of one service: what it answers from, once that is loaded."""

    def __init__(
        self,
        load: Callable[[], Searcher],
        limits: Limits,
        on_failure: Callable[[BaseException], None],
        job_name: str = "",
    ) -> None:
        self.metrics = RetrieverMetrics(job_name)
        self.limits = limits
        self.searcher: Searcher | None = None
        self.coalescer: Coalescer | None = None
        self.draining = False
        self._load = load
        self._on_failure = on_failure

    @property
    def ready(self) -> bool:
        return self.coalescer is not None and not self.draining

    async def start(self) -> None:
        """Load in a thread, probe, and only then be ready. The process answers /healthz meanwhile."""
        started = time.monotonic()
        try:
            searcher = await asyncio.to_thread(self._load)
            await asyncio.to_thread(searcher.probe)
        except Exception as error:  # noqa: BLE001 - handed to the owner of the process, who ends it
            self._on_failure(error)
            return
        limits = self.limits
        coalescer = Coalescer(
            searcher.search,
            max_batch=limits.max_batch,
            window=limits.window,
            max_queued=limits.max_queued,
            on_batch=self.metrics.batch.observe,
        )
        coalescer.start()
        self.metrics.queued.set_function(lambda: coalescer.queued)
        about = searcher.describe()
        self.metrics.passages.set(float(about["passages"]))
        self.searcher, self.coalescer = searcher, coalescer
        self.metrics.ready.set(1)
        log.info("ready after %.1f s: %s", time.monotonic() - started, about)

    async def stop(self) -> None:
        """Refuse new requests, answer those that wait."""
        self.draining = True
        self.metrics.ready.set(0)
        if self.coalescer is not None:
            await self.coalescer.close(self.limits.drain_timeout)

    async def retrieve(self, body: RetrieveRequest) -> Response:
        """Answer a request, or say clearly why not."""
        if self.coalescer is None or self.draining:
            return _problem(503, "the retriever is stopping" if self.draining else "the index is being loaded", 2)
        topk = body.topk if body.topk is not None else self.limits.topk
        try:
            async with asyncio.timeout(self.limits.request_timeout):
                hits = await self.coalescer.submit(body.queries, topk)
        except QueueFull:
            self.metrics.rejected.inc()
            return _problem(503, f"more than {self.limits.max_queued} queries wait already", 1)
        except Closed:
            return _problem(503, "the retriever is stopping", 2)
        except TimeoutError:
            return _problem(504, f"no answer within {self.limits.request_timeout:g} s")
        self.metrics.queries.inc(len(body.queries))
        return _json({"result": [_answer(found, body.return_scores) for found in hits]})


def _answer(found: Sequence[Hit], with_scores: bool) -> list[Any]:
    if with_scores:
        return [{"document": hit.document, "score": hit.score} for hit in found]
    return [hit.document for hit in found]


def _json(content: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    return Response(orjson.dumps(content), status, headers, media_type="application/json")


def _problem(status: int, detail: str, retry_after: int | None = None) -> Response:
    return _json({"detail": detail}, status, {"Retry-After": str(retry_after)} if retry_after else None)


def create_app(
    load: Callable[[], Searcher],
    limits: Limits | None = None,
    on_failure: Callable[[BaseException], None] = lambda error: log.error("cannot load: %s", error),
    job_name: str = "",
) -> FastAPI:
    """The application. `load` runs in a thread at start-up; `on_failure` is told when it raises; `job_name` is a label
    of the metrics."""
    service = Service(load, limits or Limits(), on_failure, job_name)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        starting = asyncio.create_task(service.start(), name="load")
        yield
        await service.stop()
        starting.cancel()
        with suppress(asyncio.CancelledError):
            await starting

    app = FastAPI(title="RLJob retriever", lifespan=lifespan)
    app.state.service = service

    @app.middleware("http")
    async def measure(request: Request, call_next: Callable[[Request], Awaitable[Response]]) -> Response:
        if request.url.path != "/retrieve":
            return await call_next(request)
        started = time.perf_counter()
        code = 500
        try:
            response = await call_next(request)
            code = response.status_code
        finally:
            service.metrics.seconds.observe(time.perf_counter() - started)
            service.metrics.requests.labels(str(code)).inc()
        return response

    @app.exception_handler(RequestValidationError)
    async def refuse(request: Request, error: RequestValidationError) -> Response:
        problems = [f"{'.'.join(map(str, item['loc'][1:])) or 'body'}: {item['msg']}" for item in error.errors()]
        return _problem(422, "; ".join(problems))

    @app.post("/retrieve", summary="The documents nearest to each query", response_class=Response)
    async def retrieve(body: RetrieveRequest) -> Response:
        return await service.retrieve(body)

    @app.get("/healthz", summary="200 while the process runs")
    async def healthz() -> dict[str, str]:
        return {"status": "ok"}

    @app.get("/readyz", summary="200 once the index has answered a probe query", response_class=Response)
    async def readyz() -> Response:
        return _json({"status": "ready"}) if service.ready else _problem(503, "not ready", 2)

    @app.get("/metrics", summary="Prometheus metrics", response_class=Response)
    async def metrics() -> Response:
        return Response(generate_latest(service.metrics.exposed), headers={"Content-Type": CONTENT_TYPE_LATEST})

    @app.get("/", summary="What this service answers from")
    async def info() -> dict[str, str | int | bool]:
        about = service.searcher.describe() if service.searcher is not None else {}
        return {"ready": service.ready, "topk": service.limits.topk, **about}

    return app
