"""The controller: keys in, reconciles out, a resync that heals what the watches missed."""

import asyncio
import logging
import random
import time
from contextlib import AbstractAsyncContextManager

from rljob_operator import log
from rljob_operator.controller import plan
from rljob_operator.controller.reconcile import reconcile
from rljob_operator.controller.writes import StatusThrottle
from rljob_operator.kube.client import ApiError, Kube
from rljob_operator.kube.objects import RLJOB
from rljob_operator.kube.work_queue import Canary, WorkQueue, background, work
from rljob_operator.metrics import Metrics
from rljob_operator.settings import Settings
from rljob_operator.state.refusals import Refusals

logger = logging.getLogger(__name__)
Key = tuple[str, str]
"""Namespace and name of an RLJob."""
CANARY: Key = ("", "canary")
DISTANCE_SECONDS = 1.0
"""Between two looks at a job that changes all the time, as when its pods come up: one status for all that happened.
What a plan asks for itself is not held up."""
CANARY_SECONDS = 10.0
CANARY_LIMIT = 120.0


class Controller:
    """Works the queue. `look_at` is all that a watch event does."""

    def __init__(self, kube: Kube, settings: Settings, metrics: Metrics, live: Kube | None = None) -> None:
        """`live` reads from the apiserver itself, where `kube` answers from a cache."""
        self._kube, self._settings, self._metrics, self._live = kube, settings, metrics, live
        self.queue: WorkQueue[Key] = WorkQueue(distance=DISTANCE_SECONDS)
        self._throttle: StatusThrottle[Key] = StatusThrottle(settings.settle_seconds)
        self._refusals = Refusals()
        metrics.depth.set_function(lambda: self.queue.depth)
        self.canary = Canary(CANARY_LIMIT)
        self.synced = asyncio.Event()
        """To be set once `kube` can answer; nothing is looked at before."""
        self.listed = False
        """Whether all jobs have been listed once."""

    def look_at(self, namespace: str, name: str, after: float = 0.0) -> None:
        """Something about this job may have changed; there may be more to see after so many seconds."""
        if self.synced.is_set():  # else the first listing, which comes after that, names it
            self.queue.add((namespace, name), after)

    def running(self) -> AbstractAsyncContextManager[None]:
        """Workers, resync and canary, for as long as the block lasts."""
        workers = [work(self.queue, self._handle) for _ in range(self._settings.workers)]
        return background([*workers, self._resync(), self._beat()])

    async def _handle(self, key: Key) -> float | None:
        if key == CANARY:
            log.about(None)
            self.canary.beat()
            return None
        metrics, begun = self._metrics, time.perf_counter()
        try:
            # Every call has a limit of its own; this one is for what nobody thought of.
            async with asyncio.timeout(20 * self._settings.request_timeout_seconds):
                after, observed = await reconcile(
                    self._kube,
                    *key,
                    self._settings,
                    live=self._live,
                    throttle=self._throttle,
                    refusals=self._refusals,
                )
        except Exception as error:
            metrics.reconciles.labels("error").inc()
            metrics.errors.labels(f"http_{error.status}" if isinstance(error, ApiError) else type(error).__name__).inc()
            raise
        finally:
            metrics.seconds.observe(time.perf_counter() - begun)
        if observed is None:
            metrics.reconciles.labels("gone").inc()
            metrics.job(key, None)
            self.queue.forget(key)
            self._throttle.forget(key)
            self._refusals.forget(key)
            plan.forget(*key)
            return None
        metrics.reconciles.labels("ok").inc()
        metrics.job(key, observed.job.get("status") or {})
        return after

    async def _resync(self) -> None:
        """Look at every job now and then: a watch that has died silently costs one period at most."""
        await self.synced.wait()
        while True:
            wait = self._settings.resync_seconds * random.uniform(0.8, 1.2)
            try:
                for namespace in self._settings.watch_namespaces or (None,):
                    for key in await self._kube.names(RLJOB, namespace):
                        # Spread, so that a thousand jobs are not read at once.
                        self.queue.add(key, random.uniform(0, wait / 10) if self.listed else 0.0)
                self.listed = True
            except ApiError as error:
                logger.warning("resync: %s; again in 10 s", error)
                wait = 10.0
            await asyncio.sleep(wait)

    async def _beat(self) -> None:
        while True:
            self.queue.add(CANARY)
            await asyncio.sleep(CANARY_SECONDS)
