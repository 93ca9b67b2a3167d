"""The engines as one thing: they serve one version of the weights, and a lost or stuck one is replaced."""

import gc
import logging
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from rljob.types import Sample, SamplingParams
from rljob_api.v1alpha1.job import RLJob

from rljob_trainer.workers.elasticity import ScaleWish
from rljob_trainer.workers.engine_pool import EnginePool
from rljob_trainer.workers.generation import Generating
from rljob_trainer.workers.gpu_assignment import TrainerGpus
from rljob_trainer.workers.waiting import TICK_SECONDS, WorkerError, gather
from rljob_trainer.workers.weight_sync import WeightSync, engine_name

logger = logging.getLogger(__name__)


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
        """scale: what the operator wants of the number of engines. on_scaled: called with the pods that serve and those
        that are drained, whenever they change. pulses: folder for the engines' signs of life, see `watch.pulse`. gpus:
        the trainer's, for engines that share them."""
        self._tick, self._sync = tick, sync
        self.pool = EnginePool(
            job, job_dir, tick, on_replaced, gpus=gpus, scale=scale, on_scaled=on_scaled, pulses=pulses
        )
        self._version: int | None = None
        self._asleep = False
        self.ranks_hold_version = True
        """Whether the ranks' weights are those of the version that is served. Off while they are trained beside the
        generation: an engine that is replaced then gets its weights with the next version, or with `catch_up`, unless
        the way of weights keeps this one."""
        self._without_weights: set[int] = set()
        """Engines that were replaced meanwhile: what they are asked for waits."""

    def start(self) -> None:
        """Load configuration and tokenizer on every engine. Colocated ones give their GPU memory back at once."""
        self.pool.start()
        self.sleep()
        # Samples come in as a million small objects; the collector would walk through all modules' among them.
        gc.collect()
        gc.freeze()

    # -- weights -----------------------------------------------------------------------------------------------------

    @property
    def sleeps(self) -> bool:
        """Whether engines leave their GPU to the ranks while those train."""
        return self.pool.sleeps

    def sleep(self) -> None:
        """Colocated engines give their GPU memory back; the next update wakes them."""
        if not self.sleeps or self._asleep:
            return
        with self._sync.giving_back():
            self.pool.sleep(*range(len(self.pool.actors)))
        self._asleep = True

    def update_weights(self, version: int) -> None:
        """Make every engine serve the ranks' weights as `version`. Each recomputes the digest over what it serves."""
        self._sync.prepare(version)
        self._version, self.ranks_hold_version = version, True
        self.pool.follow_wish()
        self._send(self.pool.roster.serving)
        self._asleep = False

    def take_up_joined(self) -> None:
        """Between batches: let engines go and come. New ones get the current weights, else they wait for an update."""
        if self._version is not None and self.ranks_hold_version and (joined := self.pool.follow_wish()):
            self._send(joined)

    def replace(self, index: int, why: WorkerError) -> None:
        """Replace a lost engine and send it the current weights where the ranks still hold them; do not replace
        one that was to go. Raises EngineLimitError."""
        if index in self.pool.roster.closed:
            logger.warning("%s, which was to go, is lost: %s", engine_name(index), why)
            self.pool.end(index)
            self.pool.report()
            return
        self.pool.replace(index, why)
        if self._version is None:
            return
        if self.ranks_hold_version or self._sync.keeps_version:
            self._send([index])
        else:
            self._without_weights.add(index)

    def catch_up(self) -> None:
        """The version that is served stays for now: send it to engines that have been replaced and hold no weights."""
        waiting = [index for index in self.pool.roster.serving if index in self._without_weights]
        if waiting and self.ranks_hold_version:
            self._send(waiting)

    def _send(self, indices: Iterable[int]) -> None:
        """Give engines the current weights; one that fails is replaced, and gets them, too."""
        waiting = list(indices)
        assert self._version is not None
        while waiting:
            try:
                self._sync.send(self._version, {index: self.pool.actors[index] for index in waiting})
                self._without_weights.difference_update(waiting)
                return
            except WorkerError as error:
                failed = next((index for index in waiting if engine_name(index) == error.worker), None)
                if failed is None:
                    raise
                if failed in self.pool.roster.closed:
                    self.pool.end(failed)
                    waiting.remove(failed)
                    continue
                self.pool.replace(failed, error)
                # All take part anew: an exchange that ended half way may have left the others without a version.

    # -- generating --------------------------------------------------------------------------------------------------

    def submit(
        self,
        samples: Sequence[Sample],
        sampling: SamplingParams,
        retriever_url: str | None,
        *,
        loads: Sequence[int] = (),
    ) -> Generating:
        """Start generating `samples`; see `Generating`. `loads`: samples that each engine has under way already."""
        loads = loads or [0] * len(self.pool.actors)
        return Generating(self.pool, self.replace, samples, sampling, retriever_url, loads)

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
        calls = {engine_name(index): self.pool.actors[index].metrics.remote() for index in self.pool.roster.serving}
        return gather(calls, limit=60.0, doing="reporting metrics", tick=self._tick)
