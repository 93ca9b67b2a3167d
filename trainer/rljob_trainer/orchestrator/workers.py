"""The workers of a run: trainer ranks, engines, and the weights that go from the ones to the others."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from rljob.types import Sample, SamplingParams
from rljob_api.rules.arithmetic import generates, trains

from rljob_trainer.orchestrator.context import RunContext
from rljob_trainer.orchestrator.observer import Observer
from rljob_trainer.workers.elasticity import ScaleWish
from rljob_trainer.workers.engine_group import EngineGroup
from rljob_trainer.workers.gpu_assignment import TrainerGpus
from rljob_trainer.workers.rank_group import RankGroup
from rljob_trainer.workers.waiting import WorkerError
from rljob_trainer.workers.weight_sync import make_weight_sync


class Workers:
    """Ranks where something is trained, engines where something is generated."""

    ranks: RankGroup | None
    engines: EngineGroup | None

    def __init__(self, context: RunContext, observer: Observer, scale: ScaleWish = lambda: None) -> None:
        """Makes the actors; they start later. `scale`: what the operator wants of the number of engines."""
        job, incarnation = context.job, context.incarnation
        self._spec, self._recorder, self._timer = job.spec, observer.recorder, observer.timer
        self._served: int | None = None
        """Version that the engines serve; None: they serve nothing."""
        self.ranks = self.engines = None
        gpus = TrainerGpus(job.spec, observer.beat)
        if trains(job.spec):
            pulses = incarnation.directory / "pulse"
            self.ranks = RankGroup(job, incarnation.job_dir, observer.beat, pulses, gpus)
        if generates(job.spec):
            self.engines = EngineGroup(
                job,
                incarnation.job_dir,
                observer.beat,
                self._engine_replaced,
                sync=make_weight_sync(job.spec, self.ranks, incarnation.directory, observer.beat),
                gpus=gpus,
                scale=scale,
                on_scaled=self._scaled,
                pulses=observer.watchdog.pulses,
            )

    def need_ranks(self) -> RankGroup:
        """The ranks. Raises RuntimeError where nothing is trained."""
        if self.ranks is None:
            raise RuntimeError("the job has no trainer")
        return self.ranks

    def need_engines(self) -> EngineGroup:
        """The engines. Raises RuntimeError where nothing is generated."""
        if self.engines is None:
            raise RuntimeError("the job has no engines")
        return self.engines

    def sync_weights(self, version: int) -> None:
        """Make the engines serve the ranks' weights as `version`. Where they do, only those that were replaced during a
        step that came to nothing, and hold no weights yet, get them."""
        if self.engines is None:
            return
        if self._served == version:
            self.engines.catch_up()
            return
        with self._timer.phase("sync"):
            self.engines.update_weights(version)
            self._served = version

    def leave_gpus_to_ranks(self) -> None:
        """Colocated engines give their memory back; they serve nothing until weights are sent again."""
        if self.engines is not None and self.engines.sleeps:
            self.engines.sleep()
            self._served = None

    @contextmanager
    def ranks_alone(self) -> Iterator[None]:
        """Around what needs all that the ranks keep: with `placement.offloadTrainer` engines that serve leave them the
        GPUs for it, and get their weights again."""
        version = self._served if self._spec.placement.offload_trainer else None
        if version is not None:
            self.leave_gpus_to_ranks()
        yield
        if version is not None:
            self.sync_weights(version)

    def generate(
        self,
        samples: Sequence[Sample],
        sampling: SamplingParams,
        retriever_url: str | None,
        tick: Callable[[], None],
    ) -> list[Sample]:
        """Generate every sample, in the order given. What `tick` raises ends the wait."""
        limit = float(self._spec.rollout.timeout_seconds)
        return self.need_engines().generate(samples, sampling, retriever_url, limit=limit, tick=tick)

    def _scaled(self, engines: dict[str, list[str]]) -> None:
        self._recorder.progress.update(engines=engines, transition=True)

    def _engine_replaced(self, why: str) -> None:
        self._recorder.prometheus.engine_restarted()
        self._recorder.display.message(f"engine replaced: {why}")


def running_samples(engines: EngineGroup) -> float:
    """Samples that the engines decode just now. 0 when one of them is found lost: it is replaced where its samples are
    waited for."""
    try:
        return sum(engine["running"] for engine in engines.metrics().values())
    except WorkerError:
        return 0.0
