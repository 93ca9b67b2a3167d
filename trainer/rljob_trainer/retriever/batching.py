"""Coalesces concurrent requests into batches for one worker thread, behind a bounded queue."""

import asyncio
import contextlib
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from rljob_trainer.retriever.search import Hit

Search = Callable[[Sequence[str], int], list[list[Hit]]]


class QueueFull(Exception):  # noqa: N818 - a state, not an error of anybody's
    """More queries wait than the service takes in."""


class Closed(Exception):  # noqa: N818
    """The service is shutting down."""


@dataclass(slots=True)
class _Request:
    queries: Sequence[str]
    topk: int
    answer: asyncio.Future[list[list[Hit]]]
    hits: list[list[Hit]] = field(default_factory=list)
    """Answers so far; a request larger than a batch is answered over several."""

    @property
    def left(self) -> int:
        return len(self.queries) - len(self.hits)


class Coalescer:
    """Joins what waits into one search of at most `max_batch` queries.

    While a batch is searched the next one gathers; only when nothing runs does a request wait `window` seconds for
    others.
    """

    def __init__(
        self,
        search: Search,
        *,
        max_batch: int,
        window: float,
        max_queued: int,
        on_batch: Callable[[int], None] = lambda size: None,
    ) -> None:
        self._search = search
        self._max_batch = max_batch
        self._window = window
        self._max_queued = max_queued
        self._on_batch = on_batch
        self._waiting: deque[_Request] = deque()
        self._arrived = asyncio.Event()
        self._closing = False
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="search")
        self._task: asyncio.Task[None] | None = None

    @property
    def queued(self) -> int:
        """Queries that wait."""
        return sum(request.left for request in self._waiting)

    def start(self) -> None:
        """Begin to answer; called on the event loop."""
        self._task = asyncio.create_task(self._work(), name="coalescer")

    async def submit(self, queries: Sequence[str], topk: int) -> list[list[Hit]]:
        """Hits per query. Raises QueueFull at once when too many wait, Closed while shutting down.

        A single request larger than the whole queue is taken in when nothing else waits.
        """
        if self._closing:
            raise Closed
        queued = self.queued
        if queued and queued + len(queries) > self._max_queued:
            raise QueueFull
        request = _Request(queries, topk, asyncio.get_running_loop().create_future())
        self._waiting.append(request)
        self._arrived.set()
        return await request.answer

    async def close(self, timeout: float) -> None:
        """Answer what waits, for at most `timeout` seconds, then stop."""
        self._closing = True
        self._arrived.set()
        if self._task is not None:
            done, _ = await asyncio.wait([self._task], timeout=timeout)
            if not done:
                self._task.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await self._task
        for request in self._waiting:
            if not request.answer.done():
                request.answer.set_exception(Closed())
        self._waiting.clear()
        self._thread.shutdown(wait=False, cancel_futures=True)

    async def _work(self) -> None:
        loop = asyncio.get_running_loop()
        idle = True
        while True:
            if not self._waiting:
                if self._closing:
                    return
                idle = True
                self._arrived.clear()
                await self._arrived.wait()
                continue
            if idle and self._window > 0 and not self._closing and self.queued < self._max_batch:
                await asyncio.sleep(self._window)
            idle = False
            batch = self._take()
            if not batch:
                continue
            queries = [query for request, count in batch for query in _next(request, count)]
            topk = max(request.topk for request, _ in batch)
            self._on_batch(len(queries))
            try:
                hits = await loop.run_in_executor(self._thread, self._search, queries, topk)
            except Exception as error:  # noqa: BLE001 - whatever it is, it belongs to those who asked
                self._fail(batch, error)
                continue
            self._answer(batch, hits)

    def _take(self) -> list[tuple[_Request, int]]:
        """Requests and how many of their queries go into the next batch; those nobody waits for any more are left."""
        batch: list[tuple[_Request, int]] = []
        room = self._max_batch
        while self._waiting and room:
            request = self._waiting[0]
            if request.answer.done():
                self._waiting.popleft()
                continue
            count = min(room, request.left)
            batch.append((request, count))
            room -= count
            if count < request.left:
                break
            self._waiting.popleft()
        return batch

    def _answer(self, batch: Sequence[tuple[_Request, int]], hits: Sequence[list[Hit]]) -> None:
        start = 0
        for request, count in batch:
            request.hits += [found[: request.topk] for found in hits[start : start + count]]
            start += count
            if not request.left and not request.answer.done():
                request.answer.set_result(request.hits)

    def _fail(self, batch: Sequence[tuple[_Request, int]], error: Exception) -> None:
        for request, _ in batch:
            if not request.answer.done():
                request.answer.set_exception(error)


def _next(request: _Request, count: int) -> Sequence[str]:
    return request.queries[len(request.hits) : len(request.hits) + count]
