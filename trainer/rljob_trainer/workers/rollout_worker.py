"""The rollout worker: one engine behind a Ray actor, made by `ray.remote(RolloutWorker)`, or a plain object."""

import logging
import os
import socket
import time
from collections.abc import Mapping, Sequence
from typing import Any

from rljob.types import Sample, SamplingParams
from rljob_api.contract import environment_variables as variables
from rljob_api.v1alpha1.job import RLJob

from rljob_trainer import logs
from rljob_trainer.metrics import exporter
from rljob_trainer.watch.pulse import Pulse

logger = logging.getLogger(__name__)


class RolloutWorker:
    """See `rollout.service.RolloutService`. As an actor it is asynchronous: `health` answers while samples are made.

    Importing this module imports neither Ray nor torch.
    """

    def __init__(self, job: dict[str, Any], job_dir: str, engine_index: int, pulses: str | None = None) -> None:
        """`pulses`: folder for this process's signs of life, if any are wanted."""
        self._ready = False
        self._pulse = None
        if pulses is not None:
            self._pulse = Pulse(pulses, f"engine {engine_index}", self._tokens, self._where)
        logs.configure("engine", engine_index)
        self._job, self._job_dir, self._engine_index = RLJob.model_validate(job), job_dir, engine_index

    async def start(self, devices: str | None = None) -> dict[str, Any]:
        """Load config, tokenizer and generate function, serve /metrics. `metrics_port` is this process's own, 0 when
        that is off. `devices`: CUDA_VISIBLE_DEVICES, when it is to see other GPUs than Ray has it see."""
        if devices is not None:
            os.environ["CUDA_VISIBLE_DEVICES"] = devices
        begun = time.monotonic()
        from rljob_trainer.rollout.service import RolloutService

        self._service = RolloutService(self._job, self._job_dir, self._engine_index)
        started = await self._service.start()
        self._ready = True
        self._exported = exporter.ProcessMetrics(self._job.metadata.name, "engine", self._engine_index)
        port = exporter.serve_worker(self._exported.registry, self._job.spec.tracking.metrics_port, self._job_dir)
        logger.info(
            "engine %d is ready for weights after %.1f s: %s on %s of %s, %s, up to %d tokens",
            self._engine_index,
            time.monotonic() - begun,
            self._job.spec.rollout.engine,
            _devices(started),
            socket.gethostname(),
            started["dtype"],
            started["max_context_length"],
        )
        return started | {"pid": os.getpid(), "pod": os.environ.get(variables.POD_NAME, ""), "metrics_port": port}

    async def update_weights(self, version: int, digest: str, weights: Mapping[str, Any] | str) -> str:
        """Serve `weights` as `version`; returns the digest over what is served. Raises EngineError on a mismatch."""
        logs.at_step(version)
        served = await self._service.update_weights(version, digest, weights)
        self._exported.set(self._service.metrics())
        return served

    async def begin_update(self) -> None:
        """Interrupt what is under way; nothing is served until `finish_update`."""
        await self._service.engine.begin_update()

    async def load_bucket(self, *payloads: bytes | None) -> None:
        """Take over a bucket from memory of this engine's GPUs, one payload each. What a call before returned (None)
        may stand among them, so that this one waits for it."""
        await self._service.engine.load_bucket([payload for payload in payloads if payload is not None])

    async def join_group(self, host: str, port: int, first_rank: int, world_size: int, name: str) -> None:
        """Join the NCCL group of weights."""
        await self._service.engine.join_group(host, port, first_rank, world_size, name)

    async def receive_bucket(
        self,
        names: Sequence[str],
        dtypes: Sequence[str],
        shapes: Sequence[Sequence[int]],
        group: str,
        after: None = None,
    ) -> None:
        """Take over a bucket that is broadcast; `after` is the call before, whose end is waited for."""
        await self._service.engine.receive_bucket(names, dtypes, shapes, group)

    async def load_folder(self, folder: str) -> None:
        """Take over a folder of safetensors files."""
        await self._service.engine.load_folder(folder)

    async def finish_update(self, version: int, exported: tuple[str, Mapping[str, Any]], *after: None) -> str:
        """Serve what came as `version`; `exported` is the sender's digest and table. Returns the digest served."""
        digest, table = exported
        logs.at_step(version)
        served = await self._service.engine.finish_update(version, digest, table)
        self._exported.set(self._service.metrics())
        return served

    async def sleep(self) -> None:
        """Give GPU memory back."""
        await self._service.engine.sleep()

    async def wake(self, tags: Sequence[str], *after: None) -> None:
        """Take GPU memory again."""
        await self._service.engine.wake(tags)

    async def load_model(self) -> str:
        """Serve the weights of `spec.model` as version 0; returns their digest."""
        served = await self._service.load_model()
        self._exported.set(self._service.metrics())
        return served

    async def generate(
        self, samples: Sequence[Sample], sampling: SamplingParams, retriever_url: str | None = None
    ) -> list[Sample]:
        """All samples, in their order, status set; see `RolloutService.generate`. Raises EngineError when the engine
        is lost."""
        try:
            return await self._service.generate(samples, sampling, retriever_url)
        finally:
            self._exported.set(self._service.metrics())

    async def abort(self) -> int:
        """Cut off every sample that is under way: their `generate` returns. Their number."""
        return await self._service.abort()

    async def health(self) -> dict[str, Any]:
        """Version and digest that are served. Raises EngineError when the engine is dead or hangs."""
        return self._service.health()

    async def metrics(self) -> dict[str, float]:
        """Counters since the start and gauges of now."""
        return self._service.metrics()

    async def shutdown(self) -> None:
        """End the engine."""
        if self._pulse is not None:
            self._pulse.close()
        await self._service.shutdown()

    def _tokens(self) -> float:
        return self._service.work() if self._ready else 0.0

    def _where(self) -> str:
        return self._service.where() if self._ready else "starting"


def _devices(facts: Mapping[str, Any]) -> str:
    """What an engine runs on, as its log names it. Nothing is asked of CUDA: SGLang's engine is in other processes, and
    this one would take memory of the GPU for the answer."""
    if facts["device"] == "cpu":
        return "the CPU"
    count, visible = facts.get("tp_size", 1), os.environ.get("CUDA_VISIBLE_DEVICES")
    return f"{count} GPU{'s' if count > 1 else ''}" + (f" (CUDA_VISIBLE_DEVICES {visible})" if visible else "")
