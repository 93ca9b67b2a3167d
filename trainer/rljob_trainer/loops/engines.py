"""The engines as one thing: they serve one version of the weights, and a lost or stuck one is replaced.

A sample's draws depend on its seed alone, so what a lost engine had under way is simply generated again elsewhere,
with the same result.
"""

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray

from rljob_trainer.config.job import RLJob
from rljob_trainer.loops.placement import ROLLOUT_RESOURCE, make_actor
from rljob_trainer.loops.waiting import TICK_SECONDS, WorkerError, WorkerStuckError, gather, result_of
from rljob_trainer.rollout.types import Sample, SamplingParams

logger = logging.getLogger(__name__)
START_SECONDS = 600.0
UPDATE_SECONDS = 600.0
HEALTH_EVERY_SECONDS = 10.0
HEALTH_LIMIT_SECONDS = 120.0
"""An engine whose process does not answer `health` for this long is lost."""
CALLS_AT_ONCE = 64


class EngineLimitError(RuntimeError):
    """More engines were lost than `rollout.maxEngineRestarts` allows."""


@dataclass
class _Serving:
    version: int
    digest: str
    weights: Any  # ObjectRef of the arrays


class EngineGroup:
    """All engines of the job. `tick` runs about once a second while they are waited for."""

    def __init__(
        self, job: RLJob, job_dir: Path, tick: Callable[[], None], on_replaced: Callable[[str], None] = lambda why: None
    ) -> None:
        self._job, self._job_dir, self._tick, self._on_replaced = job, job_dir, tick, on_replaced
        self._manifest = job.to_manifest()
        self._restarts_left = job.spec.rollout.max_engine_restarts
        self._serving: _Serving | None = None
        self._engines = [self._make(index) for index in range(job.spec.rollout.replicas)]

    def start(self) -> None:
        """Load configuration and tokenizer on every engine."""
        calls = {_name(index): engine.start.remote() for index, engine in enumerate(self._engines)}
        gather(calls, limit=START_SECONDS, doing="starting", tick=self._tick)

    def update_weights(self, version: int, digest: str, weights: dict[str, Any]) -> None:
        """Make every engine serve `weights`. Each recomputes the digest over what it then serves."""
        self._serving = _Serving(version, digest, ray.put(weights))
        for index in range(len(self._engines)):
            self._update(index)

    def generate(
        self,
        samples: Sequence[Sample],
        sampling: SamplingParams,
        retriever_url: str | None,
        *,
        limit: float,
        tick: Callable[[], None],
    ) -> list[Sample]:
        """Generate every sample, in the order given. What `tick` raises ends the wait.

        Raises WorkerStuckError after `limit` seconds, EngineLimitError when too many engines were lost.
        """
        numbers = [list(range(index, len(samples), len(self._engines))) for index in range(len(self._engines))]
        done: dict[int, Sample] = {}
        calls: dict[Any, int] = {}

        def submit(index: int) -> None:
            mine = [samples[number] for number in numbers[index]]
            calls[self._engines[index].generate.remote(mine, sampling, retriever_url)] = index

        def replace(index: int, why: WorkerError) -> None:
            for ref in [ref for ref, owner in calls.items() if owner == index]:
                del calls[ref]
            self._replace(index, why)
            submit(index)

        for index in range(len(self._engines)):
            if numbers[index]:
                submit(index)
        start = time.monotonic()
        health = _HealthWatch()
        while calls:
            ready, _ = ray.wait(list(calls), num_returns=1, timeout=TICK_SECONDS)
            for ref in ready:
                index = calls[ref]
                try:
                    results = result_of(ref, _name(index), "generating")
                except WorkerError as error:
                    replace(index, error)
                else:
                    del calls[ref]
                    done.update(zip(numbers[index], results, strict=True))
            tick()
            busy = sorted(set(calls.values()))
            if busy and time.monotonic() - start > limit:
                waiting = ", ".join(f"{_name(index)} ({len(numbers[index])} samples)" for index in busy)
                raise WorkerStuckError(
                    _name(busy[0]), f"{waiting} did not finish within spec.rollout.timeoutSeconds = {limit:.0f}"
                )
            for index, why in health.look({index: self._engines[index] for index in busy}):
                replace(index, why)
        return [done[number] for number in range(len(samples))]

    def metrics(self) -> dict[str, dict[str, float]]:
        """Numbers of every engine, by its name."""
        calls = {_name(index): engine.metrics.remote() for index, engine in enumerate(self._engines)}
        return gather(calls, limit=60.0, doing="reporting metrics", tick=self._tick)

    def _make(self, index: int) -> Any:
        from rljob_trainer.rollout.worker import RolloutWorker

        return make_actor(
            RolloutWorker,
            ROLLOUT_RESOURCE,
            self._manifest,
            str(self._job_dir),
            index,
            name=_name(index),
            gpus=self._job.spec.rollout.gpus_per_engine,
            concurrency=CALLS_AT_ONCE,
        )

    def _update(self, index: int) -> None:
        """Give an engine the current weights; one that fails is replaced."""
        serving = self._serving
        if serving is None:
            return
        name, doing = _name(index), f"taking over weights of version {serving.version}"
        while True:
            call = self._engines[index].update_weights.remote(serving.version, serving.digest, serving.weights)
            try:
                digest = gather({name: call}, limit=UPDATE_SECONDS, doing=doing, tick=self._tick)[name]
                if digest != serving.digest:
                    raise WorkerStuckError(
                        name, f"{name} serves weights of another digest than version {serving.version}"
                    )
                return
            except WorkerError as error:
                self._spawn_instead(index, error)

    def _replace(self, index: int, why: WorkerError) -> None:
        self._spawn_instead(index, why)
        self._update(index)

    def _spawn_instead(self, index: int, why: WorkerError) -> None:
        """A new engine in the place of a lost one, started; it has no weights yet."""
        while True:
            logger.error("%s", why)
            if self._restarts_left == 0:
                limit = self._job.spec.rollout.max_engine_restarts
                raise EngineLimitError(f"{why}; spec.rollout.maxEngineRestarts = {limit} is used up")
            self._restarts_left -= 1
            self._on_replaced(str(why))
            ray.kill(self._engines[index])
            self._engines[index] = self._make(index)
            try:
                started = {_name(index): self._engines[index].start.remote()}
                gather(started, limit=START_SECONDS, doing="starting", tick=self._tick)
                return
            except WorkerError as error:
                why = error


class _HealthWatch:
    """Asks busy engines whether they are there; a process that is gone or stopped is found long before the limit."""

    def __init__(self) -> None:
        self._asked: dict[int, tuple[Any, float]] = {}
        self._answered: dict[int, float] = {}

    def look(self, engines: dict[int, Any]) -> list[tuple[int, WorkerError]]:
        """Engines that were found lost."""
        lost: list[tuple[int, WorkerError]] = []
        now = time.monotonic()
        for index in [index for index in self._asked if index not in engines]:
            del self._asked[index]
        for index, engine in engines.items():
            if index not in self._asked:
                if now - self._answered.setdefault(index, now) >= HEALTH_EVERY_SECONDS:
                    self._asked[index] = (engine.health.remote(), now)
                continue
            ref, since = self._asked[index]
            if ray.wait([ref], timeout=0)[0]:
                del self._asked[index]
                self._answered[index] = now
                try:
                    result_of(ref, _name(index), "reporting its health")
                except WorkerError as error:
                    lost.append((index, error))
            elif now - since > HEALTH_LIMIT_SECONDS:
                del self._asked[index]
                self._answered[index] = now
                message = f"{_name(index)} has not answered for {now - since:.0f} s"
                lost.append((index, WorkerStuckError(_name(index), message)))
        return lost


def _name(index: int) -> str:
    return f"engine {index}"
