"""The engines as processes: started, replaced when one is lost, and let go or joined as the operator asks.

What they serve is not known here; see `engine_group`.
"""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ray
from rljob_api.rules.arithmetic import engines_sleep
from rljob_api.v1alpha1.job import RLJob

from rljob_trainer.watch.watchdog import WAITS
from rljob_trainer.workers.elasticity import Roster, ScaleWish
from rljob_trainer.workers.gpu_assignment import TrainerGpus
from rljob_trainer.workers.placement import ROLLOUT_RESOURCE, engine_gpu_share, make_actor
from rljob_trainer.workers.waiting import WorkerError, gather, result_of
from rljob_trainer.workers.weight_sync import UPDATE_SECONDS, engine_name

logger = logging.getLogger(__name__)
START_SECONDS = 600.0
CALLS_AT_ONCE = 4096
"""Further calls of an engine wait, `health` among them. Generating while training has a call for every group."""


class EngineLimitError(RuntimeError):
    """More engines were lost than `rollout.maxEngineRestarts` allows."""


class EnginePool:
    """The actors of all engines, by number. `tick` runs about once a second while they are waited for."""

    def __init__(
        self,
        job: RLJob,
        job_dir: Path,
        tick: Callable[[], None],
        on_replaced: Callable[[str], None],
        *,
        gpus: TrainerGpus | None,
        scale: ScaleWish,
        on_scaled: Callable[[dict[str, list[str]]], None],
        pulses: Path | None,
    ) -> None:
        """See `EngineGroup`."""
        self._pulses = None if pulses is None else str(pulses)
        self._gpus = gpus
        self._job, self._job_dir, self._tick, self._on_replaced = job, job_dir, tick, on_replaced
        self._manifest = job.to_manifest()
        self._restarts_left = job.spec.rollout.max_engine_restarts
        self.sleeps = engines_sleep(job.spec)
        """Whether engines leave their GPU to the ranks while those train."""
        self.actors = [self._make(index) for index in range(job.spec.rollout.replicas)]
        self.roster = Roster(len(self.actors))
        self._scale, self._on_scaled = scale, on_scaled
        self._joining: dict[int, Any] = {}
        self._reported: dict[str, list[str]] = {}

    def start(self) -> None:
        """Load configuration and tokenizer on every engine."""
        calls = {engine_name(index): self._begin(index) for index in range(len(self.actors))}
        started = gather(calls, limit=START_SECONDS, doing="starting", tick=self._tick)
        self.roster.pods = {index: started[engine_name(index)].get("pod", "") for index in range(len(self.actors))}
        self.report()

    def sleep(self, *indices: int) -> None:
        """Have engines give their GPU memory back."""
        calls = {engine_name(index): self.actors[index].sleep.remote() for index in indices}
        gather(calls, limit=UPDATE_SECONDS, doing="giving memory back", tick=self._tick)

    def replace(self, index: int, why: WorkerError) -> None:
        """A new engine in the place of a lost one, started; it has no weights yet. Raises EngineLimitError."""
        while True:
            logger.error("%s", why)
            if self._restarts_left == 0:
                limit = self._job.spec.rollout.max_engine_restarts
                raise EngineLimitError(f"{why}; spec.rollout.maxEngineRestarts = {limit} is used up")
            self._restarts_left -= 1
            self._on_replaced(str(why))
            ray.kill(self.actors[index])
            WAITS.forget(engine_name(index))
            self.actors[index] = self._make(index)
            try:
                started = {engine_name(index): self._begin(index)}
                up = gather(started, limit=START_SECONDS, doing="starting", tick=self._tick)
                self.roster.pods[index] = up[engine_name(index)].get("pod", "")
                self.report()
                if self.sleeps:  # an update wakes every engine it goes to
                    self.sleep(index)
                return
            except WorkerError as error:
                why = error

    def follow_wish(self) -> list[int]:
        """Follow the operator's wish for engines as far as it can be followed now. Returns the engines that have joined
        and hold no weights yet."""
        request = self._scale()
        if request is None or self.sleeps:
            return []
        roster = self.roster
        roster.close(request)
        for index in roster.idle():
            logger.info("%s ends: its pod %s is to go", engine_name(index), roster.pods.get(index))
            self.end(index)
        joined = [index for index in sorted(self._joining) if self._joined(index)]
        missing = roster.missing(request)
        free = int(ray.available_resources().get(ROLLOUT_RESOURCE, 0.0)) if missing else 0
        for _ in range(min(free, missing)):
            index = roster.take_number()
            self.actors[index : index + 1] = [self._make(index)]
            self._joining[index] = self._begin(index)
        self.report()
        return joined

    def _joined(self, index: int) -> bool:
        """Whether an engine that was started has come up."""
        ref = self._joining[index]
        if not ray.wait([ref], timeout=0)[0]:
            return False
        del self._joining[index]
        try:
            self.roster.pods[index] = result_of(ref, engine_name(index), "starting").get("pod", "")
        except WorkerError as error:  # its pod is gone again; another is started when there is place for it
            logger.warning("an engine that was to join did not: %s", error)
            self.end(index)
            return False
        self.roster.joining.discard(index)
        logger.info("%s joins on pod %s", engine_name(index), self.roster.pods[index])
        return True

    def end(self, index: int) -> None:
        """End an engine, for good."""
        ray.kill(self.actors[index])
        self.roster.end(index)

    def report(self) -> None:
        """Report which pods serve and which are drained, when that has changed."""
        report = self.roster.report(self._scale())
        if report != self._reported:
            self._reported = report
            self._on_scaled(report)

    def _make(self, index: int) -> Any:
        from rljob_trainer.workers.rollout_worker import RolloutWorker

        return make_actor(
            RolloutWorker,
            ROLLOUT_RESOURCE,
            self._manifest,
            str(self._job_dir),
            index,
            self._pulses,
            name=engine_name(index),
            gpus=engine_gpu_share(self._job.spec),
            where=None if self._gpus is None else self._gpus.of_engine(index),
            concurrency=CALLS_AT_ONCE,
        )

    def _begin(self, index: int) -> Any:
        """Ref of an engine's start. The ranks are up: engines on several of their GPUs have to know which."""
        return self.actors[index].start.remote(None if self._gpus is None else self._gpus.devices_of(index))
