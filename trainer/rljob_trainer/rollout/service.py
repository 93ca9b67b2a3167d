"""One engine and the job's generate function: what a rollout worker does, without Ray."""

import asyncio
import logging
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from rljob.types import EngineError, Sample, SamplingParams
from rljob_api.catalogue.engines import ENGINES
from rljob_api.v1alpha1.job import RLJob, RLJobSpec

from rljob_trainer.inference.interface import InferenceEngine
from rljob_trainer.inference.registry import build_engine
from rljob_trainer.models import build_model, load_tokenizer
from rljob_trainer.rollout.generate.build import JobGenerate
from rljob_trainer.rollout.resume import CutOffError, ResumableEngine, blank
from rljob_trainer.weights.arrays import Array

logger = logging.getLogger(__name__)
STUCK_SECONDS = 120.0
"""A step of the engine that takes longer is taken for a hang."""
CHECK_SECONDS = 1.0


class RolloutService:
    """Generates samples with one engine. All methods belong to one event loop.

    Order: `start`, `update_weights` at least once, then `generate`.
    """

    def __init__(
        self, job: RLJob, job_dir: str | Path, engine_index: int = 0, *, stuck_seconds: float = STUCK_SECONDS
    ) -> None:
        self.job, self.job_dir, self.engine_index = job, job_dir, engine_index
        self._stuck_seconds = stuck_seconds
        self._engine: InferenceEngine | None = None
        self._generate: JobGenerate | None = None
        self._samples = 0
        self._failed = 0
        self._resumable = job.spec.rollout.partial_rollout or job.spec.rollout.over_sampling_batch_size is not None
        self._under_way: dict[asyncio.Task[Any], ResumableEngine] = {}

    @property
    def name(self) -> str:
        """How errors name this engine."""
        return f"engine {self.engine_index}"

    async def start(self) -> dict[str, Any]:
        """Load config, tokenizer and generate function; the weights come later. Raises UserError."""
        engine = self._engine = await build_engine(self.job.spec, self.job_dir, self.engine_index)
        self._generate = JobGenerate(self.job.spec, engine.tokenizer)
        return {"engine": self.engine_index} | engine.facts()

    async def update_weights(self, version: int, digest: str, weights: Mapping[str, Array | torch.Tensor] | str) -> str:
        """Serve `weights` (arrays by Hugging Face names, or a folder of safetensors files) as `version`.

        Returns the digest over what is served. Raises EngineError when it is not `digest`: nothing is served then.
        """
        engine = self.engine
        arrays = await asyncio.to_thread(_read_safetensors, weights) if isinstance(weights, str) else weights
        try:
            return await engine.load_weights(arrays, version, digest)
        except EngineError as error:
            raise EngineError(f"{self.name}: {error}") from error

    async def load_model(self) -> str:
        """Serve the weights of `spec.model` as version 0, for jobs without a trainer. Returns their digest."""
        engine = self.engine
        weights = await asyncio.to_thread(_model_weights, self.job.spec, self.job_dir)
        return await engine.load_weights(weights, 0)

    async def generate(
        self, samples: Sequence[Sample], sampling: SamplingParams, retriever_url: str | None = None
    ) -> list[Sample]:
        """Generate all `samples`, in their order, each with its status set.

        A sample that has used up `sampling.budget` and is not finished, and one that `abort` finds under way, comes
        back with status `aborted` and its turns in `transcript`; given again, it goes on from them.
        What a tool or a hook does wrong costs its sample. Raises EngineError, naming this engine, when the engine has
        no weights, dies or hangs, and when `rollout.timeoutSeconds` is over (it then names samples that wait).
        """
        engine, generate, rollout = self.engine, self._generate_function, self.job.spec.rollout
        limit = float(rollout.timeout_seconds)
        if engine.version is None and not ENGINES[rollout.engine].updates_in_place:
            raise EngineError(f"{self.name} has no weights yet")
        await generate.connect(retriever_url)
        tasks = [asyncio.create_task(self._one(sample, sampling, generate, engine)) for sample in samples]
        deadline = time.monotonic() + limit
        try:
            waiting = set(tasks)
            while waiting:
                done, waiting = await asyncio.wait(waiting, timeout=CHECK_SECONDS, return_when=asyncio.FIRST_EXCEPTION)
                for task in done:
                    task.result()
                if waiting:
                    engine.check(self._stuck_seconds)
                if waiting and time.monotonic() > deadline:
                    raise EngineError(_too_late(samples, tasks, limit))
        except EngineError as error:
            raise EngineError(f"{self.name}: {error}") from error
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        results = [task.result() for task in tasks]
        self._samples += len(results)
        self._failed += sum(sample.status == "failed" for sample in results)
        return results

    async def abort(self) -> int:
        """Cut off every sample that is under way. Returns their number."""
        under_way = list(self._under_way.items())
        for task, resumable in under_way:
            if not await resumable.abort():
                task.cancel()  # it waits for a tool
        return len(under_way)

    async def _one(
        self, sample: Sample, sampling: SamplingParams, generate: JobGenerate, engine: InferenceEngine
    ) -> Sample:
        if not (self._resumable or sampling.budget is not None):
            return await generate(sample, sampling, engine)
        task, resumable = asyncio.current_task(), ResumableEngine(engine, sample.transcript, sampling.budget)
        assert task is not None
        self._under_way[task] = resumable
        try:
            return await generate(blank(sample), sampling, resumable)
        except CutOffError:
            pass
        except asyncio.CancelledError:
            if not resumable.cut:
                raise
            task.uncancel()
        finally:
            del self._under_way[task]
        cut = blank(sample)
        cut.status, cut.transcript = "aborted", resumable.transcript()
        return cut

    def health(self) -> dict[str, Any]:
        """What is served. Raises EngineError when the engine is dead or hangs."""
        engine = self.engine
        try:
            engine.check(self._stuck_seconds)
        except EngineError as error:
            raise EngineError(f"{self.name}: {error}") from error
        return {"engine": self.engine_index, "version": engine.version, "digest": engine.digest}

    def metrics(self) -> dict[str, float]:
        """Counters since the start and gauges of now."""
        engine = self.engine
        stats = engine.stats()
        return (
            stats
            | {
                "policy_version": float(-1 if engine.version is None else engine.version),
                "samples": float(self._samples),
                "failed_samples": float(self._failed),
            }
            | self._generate_function.metrics()
        )

    def work(self) -> float:
        """Grows while tokens are made. For another thread to ask."""
        stats = self.engine.stats()
        return stats["generated_tokens"] + stats["prefilled_tokens"]

    def where(self) -> str:
        """What is under way, in words. For another thread to ask."""
        running = self.engine.stats()["running"]
        return f"{running:.0f} samples decoding, {self._generate_function.searching()}"

    async def shutdown(self) -> None:
        """End the engine's thread and close connections."""
        if self._generate is not None:
            await self._generate.close()
        if self._engine is not None:
            await asyncio.to_thread(self._engine.shutdown)

    @property
    def engine(self) -> InferenceEngine:
        """The engine. Raises EngineError before `start`."""
        if self._engine is None:
            raise EngineError(f"{self.name} is not started")
        return self._engine

    @property
    def _generate_function(self) -> JobGenerate:
        if self._generate is None:
            raise EngineError(f"{self.name} is not started")
        return self._generate


def _model_weights(spec: RLJobSpec, job_dir: str | Path) -> dict[str, torch.Tensor]:
    """Weights as the trainer would start from, under their Hugging Face names."""
    tokenizer = load_tokenizer(spec.model, job_dir)
    model = build_model(spec.model, job_dir, tokenizer, seed=spec.seed)
    return {name: parameter.detach() for name, parameter in model.named_parameters()}


def _read_safetensors(folder: str) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    files = sorted(Path(folder).glob("*.safetensors"))
    if not files:
        raise EngineError(f"no *.safetensors in {folder}")
    return {name: tensor for file in files for name, tensor in load_file(file).items()}


def _too_late(samples: Sequence[Sample], tasks: Sequence["asyncio.Task[Sample]"], limit: float) -> str:
    late = [
        f"group {sample.group} sample {sample.index}"
        for sample, task in zip(samples, tasks, strict=True)
        if not task.done()
    ]
    more = f" and {len(late) - 5} more" if len(late) > 5 else ""
    return f"spec.rollout.timeoutSeconds = {limit:.0f} is over; waiting: {', '.join(late[:5])}{more}"
