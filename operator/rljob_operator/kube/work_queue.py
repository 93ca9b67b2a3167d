"""A keyed work queue: each key is worked on by one worker at a time, not too often, and again later when it failed.

Adding a key says "look at this object"; adding it many times while it waits, or while it is worked on, costs one more
look. Delays: a wish (`after`), a minimal distance between two looks, and exponential back-off after failures.
"""

import asyncio
import contextlib
import heapq
import itertools
import logging
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Hashable, Iterable
from typing import Any

from rljob_operator.kube.client import ApiError

logger = logging.getLogger(__name__)


class WorkQueue[K: Hashable]:
    """Keys to be worked on, by time."""

    def __init__(
        self,
        *,
        distance: float = 0.1,
        backoff: float = 0.5,
        backoff_max: float = 60.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`distance`: least seconds between the ends and starts of two looks; `backoff`: seconds after a failure,
        doubled for each further one in a row, at most `backoff_max`."""
        self._distance, self._backoff, self._backoff_max, self._clock = distance, backoff, backoff_max, clock
        self._due: dict[K, float] = {}
        self._heap: list[tuple[float, int, K]] = []
        self._order = itertools.count()
        self._working: set[K] = set()
        self._not_before: dict[K, float] = {}
        self._failures: dict[K, int] = {}
        self._changed = asyncio.Event()

    def __len__(self) -> int:
        """Keys that are due now or later, or worked on."""
        return len(self._due.keys() | self._working)

    @property
    def depth(self) -> int:
        """Keys that are due and wait for a worker."""
        now = self._clock()
        return sum(due <= now for due in self._due.values())

    def add(self, key: K, after: float = 0.0, *, near: bool = False) -> None:
        """Look at `key` after so many seconds, or sooner when something sooner was asked before. `near`: not kept apart
        from the look before."""
        due = self._clock() + after
        if not near:
            due = max(due, self._not_before.get(key, 0.0))
        if key in self._due and self._due[key] <= due:
            return
        self._due[key] = due
        heapq.heappush(self._heap, (due, next(self._order), key))
        self._changed.set()

    async def get(self) -> K:
        """The next key that is due; to be given back by `done` or `failed`."""
        while True:
            wait = self._next_wait()
            if wait is not None and wait <= 0:
                _, _, key = heapq.heappop(self._heap)
                del self._due[key]
                self._working.add(key)
                return key
            self._changed.clear()
            try:
                await asyncio.wait_for(self._changed.wait(), wait)
            except TimeoutError:
                continue

    def _next_wait(self) -> float | None:
        """Seconds until the first key is due; None when there is none. Drops what was asked for sooner elsewhere, and
        puts keys off that are being worked on."""
        while self._heap:
            due, _, key = self._heap[0]
            if self._due.get(key) != due:
                heapq.heappop(self._heap)
            elif key in self._working:
                heapq.heappop(self._heap)
                self._due[key] = float("inf")  # put back by `done`
            else:
                return due - self._clock()
        return None

    def done(self, key: K) -> None:
        """The look at `key` went well."""
        self._failures.pop(key, None)
        self._give_back(key, self._distance)

    def failed(self, key: K) -> float:
        """The look at `key` failed: again after the back-off, which is returned, in seconds."""
        failures = self._failures[key] = self._failures.get(key, 0) + 1
        delay = min(self._backoff_max, self._backoff * 2.0 ** min(failures - 1, 16)) * random.uniform(0.8, 1.2)
        self._give_back(key, delay)
        self.add(key)
        return delay

    def forget(self, key: K) -> None:
        """The object is gone: keep nothing of it."""
        self._not_before.pop(key, None)
        self._failures.pop(key, None)

    def _give_back(self, key: K, distance: float) -> None:
        self._working.discard(key)
        self._not_before[key] = self._clock() + distance
        if self._due.pop(key, None) is not None:
            self.add(key)
        self._changed.set()


@contextlib.asynccontextmanager
async def background(coroutines: Iterable[Coroutine[Any, Any, None]]) -> AsyncIterator[None]:
    """Run coroutines as tasks for as long as the block lasts; at its end they are cancelled and waited for."""
    tasks = [asyncio.create_task(coroutine) for coroutine in coroutines]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def work[K: Hashable](queue: WorkQueue[K], handle: Callable[[K], Awaitable[float | None]]) -> None:
    """Work on keys for ever: `handle` returns the seconds until its next look, or None. What it raises is logged and
    the key tried again later."""
    while True:
        key = await queue.get()
        try:
            after = await handle(key)
        except asyncio.CancelledError:
            raise
        except Exception as error:
            delay = queue.failed(key)
            logger.warning("%s: %s; again in %.1f s", key, error, delay, exc_info=not isinstance(error, ApiError))
        else:
            queue.done(key)
            if after is not None:
                queue.add(key, after, near=True)


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
