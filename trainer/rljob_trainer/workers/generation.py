"""Samples under way: which engine makes which sample, in calls of a bounded size.

All samples of a prompt go to one engine, which computes the prompt once and has its prefix cache give it to the others;
the turns of a sample stay there for the same reason. A sample's draws depend on its seed alone, so what a lost engine
had under way is simply generated again elsewhere, with the same result.
"""

import time
from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import Any

import ray
from rljob.types import Sample, SamplingParams

from rljob_trainer.watch.watchdog import WAITS
from rljob_trainer.workers.engine_pool import EnginePool
from rljob_trainer.workers.waiting import WorkerError, WorkerStuckError, check_signs_of_life, result_of
from rljob_trainer.workers.weight_sync import engine_name

HEALTH_EVERY_SECONDS = 10.0
HEALTH_LIMIT_SECONDS = 120.0
"""An engine whose process does not answer `health` for this long is lost."""
CALL_SAMPLES = 32
"""Samples of one call: the driver takes them in while the engine makes or sends others. More where there would be more
than `CALLS` calls."""
CALLS = 16
"""Calls of one batch on one engine at most."""


def by_group[G: Hashable](groups: Sequence[G]) -> list[list[int]]:
    """Numbers of the samples of each group, groups in the order of their first sample."""
    numbers: dict[G, list[int]] = {}
    for number, group in enumerate(groups):
        numbers.setdefault(group, []).append(number)
    return list(numbers.values())


def route(sizes: Iterable[int], loads: Sequence[int]) -> list[int]:
    """The engine of each of the groups, which have `sizes` samples: in their order, each to the engine with the least
    to do (of equals the first), `loads` being what the engines have under way already."""
    if not loads:
        raise ValueError("no engine")
    now = list(loads)
    chosen = []
    for size in sizes:
        engine = now.index(min(now))
        now[engine] += size
        chosen.append(engine)
    return chosen


def calls_of(numbers: Sequence[int]) -> list[Sequence[int]]:
    """The samples of each call, `numbers` being those of one batch for one engine."""
    size = max(CALL_SAMPLES, -(-len(numbers) // CALLS))
    return [numbers[start : start + size] for start in range(0, len(numbers), size)]


class Generating:
    """Samples under way. `poll` moves them on; a lost engine is replaced there and its samples are made again."""

    def __init__(
        self,
        pool: EnginePool,
        replace: Callable[[int, WorkerError], None],
        samples: Sequence[Sample],
        sampling: SamplingParams,
        retriever_url: str | None,
        loads: Sequence[int],
    ) -> None:
        """replace: what to do about a lost engine. loads: samples that each engine has under way already."""
        self._pool, self._replace_engine = pool, replace
        self._samples, self._arguments = samples, (sampling, retriever_url)
        groups = by_group([sample.group for sample in samples])
        numbers: dict[int, list[int]] = {}
        for mine, index in zip(groups, route(map(len, groups), pool.roster.loads(list(loads))), strict=True):
            numbers.setdefault(index, []).extend(mine)
        self._done: dict[int, Sample] = {}
        self._calls: dict[Any, tuple[int, Sequence[int]]] = {}
        """Engine and samples of each call under way."""
        self._actors: dict[int, Any] = {}
        self._health = _HealthWatch()
        self._since = time.monotonic()
        for index, mine in numbers.items():
            for call in calls_of(mine):
                self._submit(index, call)

    @property
    def done(self) -> bool:
        """Whether all samples are there."""
        return not self._calls

    @property
    def loads(self) -> list[int]:
        """Samples under way, by engine."""
        loads = [0] * len(self._pool.actors)
        for index, numbers in self._calls.values():
            loads[index] += len(numbers)
        return loads

    def results(self) -> list[Sample]:
        """The samples in the order they were given. Only when `done`."""
        return [self._done[number] for number in range(len(self._samples))]

    def poll(self, timeout: float) -> None:
        """Wait up to `timeout` seconds for something to be ready, and take in all that is. Raises EngineLimitError."""
        if not self._calls:
            return
        busy = self._busy
        with WAITS.waiting([engine_name(index) for index in busy], "generating", since=self._since):
            ready, others = ray.wait(list(self._calls), num_returns=1, timeout=timeout)
        if ready and others:
            ready += ray.wait(others, num_returns=len(others), timeout=0)[0]
        for ref in ready:
            if ref not in self._calls:  # its engine was replaced just now
                continue
            index, numbers = self._calls[ref]
            try:
                results = result_of(ref, engine_name(index), "generating")
            except WorkerError as error:
                self._replace(index, error)
            else:
                del self._calls[ref]
                self._pool.roster.busy[index] -= 1
                self._done.update(zip(numbers, results, strict=True))
        busy = self._busy
        for index in busy:
            try:
                check_signs_of_life(engine_name(index))
            except WorkerError as error:
                self._replace(index, error)
        for index, why in self._health.look({index: self._actors[index] for index in busy}):
            self._replace(index, why)

    def too_late(self, limit: float) -> WorkerStuckError:
        """The error that says which engines have not finished within `limit` seconds."""
        busy, loads = self._busy, self.loads
        waiting = ", ".join(f"{engine_name(index)} ({loads[index]} samples)" for index in busy)
        return WorkerStuckError(
            engine_name(busy[0]), f"{waiting} did not finish within spec.rollout.timeoutSeconds = {limit:.0f}"
        )

    @property
    def _busy(self) -> list[int]:
        return sorted({index for index, _ in self._calls.values()})

    def _submit(self, index: int, numbers: Sequence[int]) -> None:
        mine = [self._samples[number] for number in numbers]
        self._actors[index] = self._pool.actors[index]
        self._pool.roster.busy[index] += 1
        self._calls[self._actors[index].generate.remote(mine, *self._arguments)] = index, numbers

    def _replace(self, index: int, why: WorkerError) -> None:
        lost = [(ref, numbers) for ref, (owner, numbers) in self._calls.items() if owner == index]
        for ref, _ in lost:
            del self._calls[ref]
            self._pool.roster.busy[index] -= 1
        if self._pool.actors[index] is self._actors[index]:  # else another batch has found it lost already
            self._replace_engine(index, why)
        for _, numbers in lost:
            (target,) = route([len(numbers)], self._pool.roster.loads(self.loads))
            self._submit(target if index in self._pool.roster.closed else index, numbers)


class _HealthWatch:
    """Asks busy engines whether they are there; a process that is gone or stopped is found long before the limit."""

    def __init__(self) -> None:
        self._asked: dict[int, tuple[Any, Any, float]] = {}
        """The engine that was asked, its answer to come, and since when."""
        self._answered: dict[int, float] = {}

    def look(self, engines: dict[int, Any]) -> list[tuple[int, WorkerError]]:
        """Engines that were found lost."""
        lost: list[tuple[int, WorkerError]] = []
        now = time.monotonic()
        # What a replaced engine was asked says nothing of the one in its place.
        for index in [index for index, (asked, _, _) in self._asked.items() if engines.get(index) is not asked]:
            del self._asked[index]
        for index, engine in engines.items():
            if index not in self._asked:
                if now - self._answered.setdefault(index, now) >= HEALTH_EVERY_SECONDS:
                    self._asked[index] = (engine, engine.health.remote(), now)
                continue
            _, ref, since = self._asked[index]
            if ray.wait([ref], timeout=0)[0]:
                del self._asked[index]
                self._answered[index] = now
                try:
                    result_of(ref, engine_name(index), "reporting its health")
                except WorkerError as error:
                    lost.append((index, error))
            elif now - since > HEALTH_LIMIT_SECONDS:
                del self._asked[index]
                self._answered[index] = now
                message = f"{engine_name(index)} has not answered for {now - since:.0f} s"
                lost.append((index, WorkerStuckError(engine_name(index), message)))
        return lost
