"""The rollout worker: one engine behind a Ray actor, made by `ray.remote(RolloutWorker)`, or a plain object."""

import logging
import os
from collections.abc import Mapping, Sequence
from typing import Any

from prometheus_client import start_http_server

from rljob_trainer.config.job import RLJob
from rljob_trainer.metrics import exporter
from rljob_trainer.rollout.types import Sample, SamplingParams


class RolloutWorker:
    """See `rollout.service.RolloutService`. As an actor it is asynchronous: `health` answers while samples are made.

    Importing this module imports neither Ray nor torch.
    """

    def __init__(self, job: dict[str, Any], job_dir: str, engine_index: int) -> None:
        logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
        self._job, self._job_dir, self._engine_index = RLJob.model_validate(job), job_dir, engine_index

    async def start(self) -> dict[str, Any]:
        """Load config, tokenizer and generate function, serve /metrics. `metrics_port` is 0 when that is off."""
        from rljob_trainer.rollout.service import RolloutService

        self._service = RolloutService(self._job, self._job_dir, self._engine_index)
        started = await self._service.start()
        self._exported = exporter.ProcessMetrics(self._job.metadata.name, "engine", self._engine_index)
        return started | {"pid": os.getpid(), "metrics_port": self._serve_metrics()}

    async def update_weights(self, version: int, digest: str, weights: Mapping[str, Any] | str) -> str:
        """Serve `weights` as `version`; returns the digest over what is served. Raises EngineError on a mismatch."""
        served = await self._service.update_weights(version, digest, weights)
        self._exported.set(self._service.metrics())
        return served

    async def generate(
        self, samples: Sequence[Sample], sampling: SamplingParams, retriever_url: str | None = None
    ) -> list[Sample]:
        """All samples, in their order, status set. Raises EngineError when the engine is lost."""
        try:
            return await self._service.generate(samples, sampling, retriever_url)
        finally:
            self._exported.set(self._service.metrics())

    async def health(self) -> dict[str, Any]:
        """Version and digest that are served. Raises EngineError when the engine is dead or hangs."""
        return self._service.health()

    async def metrics(self) -> dict[str, float]:
        """Counters since the start and gauges of now."""
        return self._service.metrics()

    async def shutdown(self) -> None:
        """End the engine."""
        await self._service.shutdown()

    def _serve_metrics(self) -> int:
        """In a pod the engine has the port to itself; elsewhere it takes a free one."""
        port = self._job.spec.tracking.metrics_port
        if port == 0:
            return 0
        if "RLJOB_NAME" in os.environ:
            # A replaced engine may find the port still held by the one before.
            return exporter.serve(self._exported.registry, port)
        server, _ = start_http_server(0, registry=self._exported.registry)
        return int(server.server_port)
