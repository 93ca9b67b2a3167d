"""The engines as one thing: they serve one version of the weights, and a lost or stuck one is replaced.

A sample's draws depend on its seed alone, so what a lost engine had under way is simply generated again elsewhere,
with the same result.
"""

import gc
import logging
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import ray
from rljob.types import Sample, SamplingParams
from rljob_api.manifest.arithmetic import shares_gpus
from rljob_api.v1alpha1.job import RLJob

from rljob_trainer.inference.routing import by_group, route
from rljob_trainer.watch.watchdog import WAITS
from rljob_trainer.workers.elasticity import Roster, ScaleWish
from rljob_trainer.workers.gpu_assignment import TrainerGpus
from rljob_trainer.workers.placement import ROLLOUT_RESOURCE, engine_gpu_share, make_actor
from rljob_trainer.workers.waiting import (
    TICK_SECONDS,
    WorkerError,
    WorkerStuckError,
    check_signs_of_life,
    gather,
    result_of,
)
from rljob_trainer.workers.weight_sync import ObjectStoreSync, WeightSync
from rljob_trainer.workers.weight_sync import engine_name as _name

logger = logging.getLogger(__name__)
START_SECONDS = 600.0
UPDATE_SECONDS = 600.0
HEALTH_EVERY_SECONDS = 10.0
HEALTH_LIMIT_SECONDS = 120.0
"""An engine whose process does not answer `health` for this long is lost."""
CALLS_AT_ONCE = 4096
"""Further calls of an engine wait, `health` among them. Generating while training has a call for every group."""
CALL_SAMPLES = 32
"""Samples of one call: the driver takes them in while the engine makes or sends others. More where there would be more
than `CALLS` calls."""
CALLS = 16
"""Calls of one batch on one engine at most."""


class EngineLimitError(RuntimeError):
    """More engines were lost than `rollout.maxEngineRestarts` allows."""


class EngineGroup:
    """All engines of the job. `tick` runs about once a second while they are waited for."""

    def __init__(
        self,
        job: RLJob,
        job_dir: Path,
        tick: Callable[[], None],
        on_replaced: Callable[[str], None] = lambda why: None,
        *,
        sync: WeightSync,
        gpus: TrainerGpus | None = None,
        scale: ScaleWish = lambda: None,
        on_scaled: Callable[[dict[str, list[str]]], None] = lambda report: None,
        pulses: Path | None = None,
    ) -> None:
        """scale: what the operator wants of the number of engines. on_scaled: is told which pods serve or are drained
        whenever that changes. pulses: folder for the engines' signs of life, see `watch.pulse`. gpus: the trainer's,
        for engines that share them."""
        self._pulses = None if pulses is None else str(pulses)
        self._gpus = gpus
        self._job, self._job_dir, self._tick, self._on_replaced, self._sync = job, job_dir, tick, on_replaced, sync
        self._manifest = job.to_manifest()
        self._restarts_left = job.spec.rollout.max_engine_restarts
        self._version: int | None = None
        self._asleep = False
        self.may_send = True
        """Whether the ranks' weights are those of the version that is served. Off while they are trained beside the
        generation: an engine that is replaced then gets its weights with the next version."""
        self.actors = [self._make(index) for index in range(job.spec.rollout.replicas)]
        self.roster = Roster(len(self.actors))
        self._scale, self._on_scaled = scale, on_scaled
        self._joining: dict[int, Any] = {}
        self._reported: dict[str, list[str]] = {}

    def start(self) -> None:
        """Load configuration and tokenizer on every engine. Colocated ones give their GPU memory back at once."""
        calls = {_name(index): self._begin(index) for index in range(len(self.actors))}
        started = gather(calls, limit=START_SECONDS, doing="starting", tick=self._tick)
        self.roster.pods = {index: started[_name(index)].get("pod", "") for index in range(len(self.actors))}
        self._report()
        self.sleep()
        # Samples come in as a million small objects; the collector would walk through all modules' among them.
        gc.collect()
        gc.freeze()

    @property
    def sleeps(self) -> bool:
        """Whether engines leave their GPU to the ranks while those train."""
        return shares_gpus(self._job.spec) and self._job.spec.rollout.engine == "sglang"

    def sleep(self) -> None:
        """Colocated engines give their GPU memory back; the next update wakes them."""
        if not self.sleeps or self._asleep:
            return
        with self._sync.giving_back():
            calls = {_name(index): engine.sleep.remote() for index, engine in enumerate(self.actors)}
            gather(calls, limit=UPDATE_SECONDS, doing="giving memory back", tick=self._tick)
        self._asleep = True

    def update_weights(self, version: int) -> None:
        """Make every engine serve the ranks' weights as `version`. Each recomputes the digest over what it serves."""
        self._sync.prepare(version)
        self._version, self.may_send = version, True
        self._adjust()
        self._send(self.roster.serving)
        self._asleep = False

    def take_up_joined(self) -> None:
        """Between batches: let engines go and come. New ones get the current weights, else they wait for an update."""
        if self._version is not None and self.may_send and (joined := self._adjust()):
            self._send(joined)

    def _adjust(self) -> list[int]:
        """Follow the operator's wish for engines as far as it can be followed now. Returns the engines that have joined
        and hold no weights yet."""
        request = self._scale()
        if request is None or self.sleeps:
            return []
        roster = self.roster
        roster.close(request)
        for index in roster.idle():
            logger.info("%s ends: its pod %s is to go", _name(index), roster.pods.get(index))
            self._end(index)
        joined = [index for index in sorted(self._joining) if self._joined(index)]
        missing = roster.missing(request)
        free = int(ray.available_resources().get(ROLLOUT_RESOURCE, 0.0)) if missing else 0
        for _ in range(min(free, missing)):
            index = roster.take_number()
            self.actors[index : index + 1] = [self._make(index)]
            self._joining[index] = self._begin(index)
        self._report()
        return joined

    def _joined(self, index: int) -> bool:
        """Whether an engine that was started has come up."""
        ref = self._joining[index]
        if not ray.wait([ref], timeout=0)[0]:
            return False
        del self._joining[index]
        try:
            self.roster.pods[index] = result_of(ref, _name(index), "starting").get("pod", "")
        except WorkerError as error:  # its pod is gone again; another is started when there is place for it
            logger.warning("an engine that was to join did not: %s", error)
            self._end(index)
            return False
        self.roster.joining.discard(index)
        logger.info("%s joins on pod %s", _name(index), self.roster.pods[index])
        return True

    def _end(self, index: int) -> None:
        ray.kill(self.actors[index])
        self.roster.end(index)

    def _report(self) -> None:
        report = self.roster.report(self._scale())
        if report != self._reported:
            self._reported = report
            self._on_scaled(report)

    def submit(
        self,
        samples: Sequence[Sample],
        sampling: SamplingParams,
        retriever_url: str | None,
        *,
        loads: Sequence[int] = (),
    ) -> "Generating":
        """Start generating `samples`; see `Generating`. `loads`: samples that each engine has under way already."""
        return Generating(self, samples, sampling, retriever_url, loads or [0] * len(self.actors))

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
        self.take_up_joined()
        generating = self.submit(samples, sampling, retriever_url)
        start = time.monotonic()
        while not generating.done:
            generating.poll(TICK_SECONDS)
            tick()
            if not generating.done and time.monotonic() - start > limit:
                raise generating.too_late(limit)
        return generating.results()

    def metrics(self) -> dict[str, dict[str, float]]:
        """Numbers of every engine, by its name."""
        calls = {_name(index): self.actors[index].metrics.remote() for index in self.roster.serving}
        return gather(calls, limit=60.0, doing="reporting metrics", tick=self._tick)

    def replace(self, index: int, why: WorkerError) -> None:
        """A new engine in the place of a lost one, with the current weights where they can be had; none in the place of
        one that was to go."""
        if index in self.roster.closed:
            logger.warning("%s, which was to go, is lost: %s", _name(index), why)
            self._end(index)
            self._report()
            return
        self._spawn_instead(index, why)
        if self._version is not None and (self.may_send or isinstance(self._sync, ObjectStoreSync)):
            self._send([index])

    def _make(self, index: int) -> Any:
        from rljob_trainer.workers.rollout_worker import RolloutWorker

        return make_actor(
            RolloutWorker,
            ROLLOUT_RESOURCE,
            self._manifest,
            str(self._job_dir),
            index,
            self._pulses,
            name=_name(index),
            gpus=engine_gpu_share(self._job.spec),
            where=None if self._gpus is None else self._gpus.of_engine(index),
            concurrency=CALLS_AT_ONCE,
        )

    def _begin(self, index: int) -> Any:
        """Ref of an engine's start. The ranks are up: engines on several of their GPUs have to know which."""
        return self.actors[index].start.remote(None if self._gpus is None else self._gpus.devices_of(index))

    def _send(self, indices: Iterable[int]) -> None:
        """Give engines the current weights; one that fails is replaced, and gets them, too."""
        waiting = list(indices)
        assert self._version is not None
        while True:
            try:
                self._sync.send(self._version, {index: self.actors[index] for index in waiting})
                return
            except WorkerError as error:
                failed = next((index for index in waiting if _name(index) == error.worker), None)
                if failed is None:
                    raise
                if failed in self.roster.closed:
                    self._end(failed)
                    waiting.remove(failed)
                    continue
                self._spawn_instead(failed, error)
                # All take part anew: an exchange that ended half way may have left the others without a version.

    def _spawn_instead(self, index: int, why: WorkerError) -> None:
        """A new engine in the place of a lost one, started; it has no weights yet."""
        while True:
            logger.error("%s", why)
            if self._restarts_left == 0:
                limit = self._job.spec.rollout.max_engine_restarts
                raise EngineLimitError(f"{why}; spec.rollout.maxEngineRestarts = {limit} is used up")
            self._restarts_left -= 1
            self._on_replaced(str(why))
            ray.kill(self.actors[index])
            WAITS.forget(_name(index))
            self.actors[index] = self._make(index)
            try:
                started = {_name(index): self._begin(index)}
                up = gather(started, limit=START_SECONDS, doing="starting", tick=self._tick)
                self.roster.pods[index] = up[_name(index)].get("pod", "")
                self._report()
                if self.sleeps:  # an update wakes every engine it goes to
                    gather(
                        {_name(index): self.actors[index].sleep.remote()},
                        limit=UPDATE_SECONDS,
                        doing="giving memory back",
                        tick=self._tick,
                    )
                return
            except WorkerError as error:
                why = error


def calls_of(numbers: Sequence[int]) -> list[Sequence[int]]:
    """The samples of each call, `numbers` being those of one batch for one engine."""
    size = max(CALL_SAMPLES, -(-len(numbers) // CALLS))
    return [numbers[start : start + size] for start in range(0, len(numbers), size)]


class Generating:
    """Samples under way. `poll` moves them on; a lost engine is replaced there and its samples are made again."""

    def __init__(
        self,
        group: EngineGroup,
        samples: Sequence[Sample],
        sampling: SamplingParams,
        retriever_url: str | None,
        loads: Sequence[int],
    ) -> None:
        self._group, self._samples, self._arguments = group, samples, (sampling, retriever_url)
        groups = by_group([sample.group for sample in samples])
        numbers: dict[int, list[int]] = {}
        for mine, index in zip(groups, route(map(len, groups), group.roster.loads(list(loads))), strict=True):
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
        loads = [0] * len(self._group.actors)
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
        with WAITS.waiting([_name(index) for index in busy], "generating", since=self._since):
            ready, others = ray.wait(list(self._calls), num_returns=1, timeout=timeout)
        if ready and others:
            ready += ray.wait(others, num_returns=len(others), timeout=0)[0]
        for ref in ready:
            if ref not in self._calls:  # its engine was replaced just now
                continue
            index, numbers = self._calls[ref]
            try:
                results = result_of(ref, _name(index), "generating")
            except WorkerError as error:
                self._replace(index, error)
            else:
                del self._calls[ref]
                self._group.roster.busy[index] -= 1
                self._done.update(zip(numbers, results, strict=True))
        busy = self._busy
        for index in busy:
            try:
                check_signs_of_life(_name(index))
            except WorkerError as error:
                self._replace(index, error)
        for index, why in self._health.look({index: self._actors[index] for index in busy}):
            self._replace(index, why)

    def too_late(self, limit: float) -> WorkerStuckError:
        """The error that says which engines have not finished within `limit` seconds."""
        busy, loads = self._busy, self.loads
        waiting = ", ".join(f"{_name(index)} ({loads[index]} samples)" for index in busy)
        return WorkerStuckError(
            _name(busy[0]), f"{waiting} did not finish within spec.rollout.timeoutSeconds = {limit:.0f}"
        )

    @property
    def _busy(self) -> list[int]:
        return sorted({index for index, _ in self._calls.values()})

    def _submit(self, index: int, numbers: Sequence[int]) -> None:
        mine = [self._samples[number] for number in numbers]
        self._actors[index] = self._group.actors[index]
        self._group.roster.busy[index] += 1
        self._calls[self._actors[index].generate.remote(mine, *self._arguments)] = index, numbers

    def _replace(self, index: int, why: WorkerError) -> None:
        lost = [(ref, numbers) for ref, (owner, numbers) in self._calls.items() if owner == index]
        for ref, _ in lost:
            del self._calls[ref]
            self._group.roster.busy[index] -= 1
        if self._group.actors[index] is self._actors[index]:  # else another batch has found it lost already
            self._group.replace(index, why)
        for _, numbers in lost:
            (target,) = route([len(numbers)], self._group.roster.loads(self.loads))
            self._submit(target if index in self._group.roster.closed else index, numbers)


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
                    result_of(ref, _name(index), "reporting its health")
                except WorkerError as error:
                    lost.append((index, error))
            elif now - since > HEALTH_LIMIT_SECONDS:
                del self._asked[index]
                self._answered[index] = now
                message = f"{_name(index)} has not answered for {now - since:.0f} s"
                lost.append((index, WorkerStuckError(_name(index), message)))
        return lost
