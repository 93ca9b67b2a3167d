"""A whole run in this process: the loop, its groups of workers and the workers are the real ones, Ray is not there.

A call of an actor runs at once; engines have an event loop on a thread.
"""

import argparse
import asyncio
import inspect
import json
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from ray.exceptions import RayActorError
from rljob_api.v1alpha1.job import RLJob
from rljob_trainer.checkpoint import latest_commit
from rljob_trainer.cluster.progress import ProgressReporter
from rljob_trainer.orchestrator import setup
from rljob_trainer.orchestrator.stop import StopFlag
from rljob_trainer.orchestrator.workers import Workers
from rljob_trainer.workers import engine_pool, generation, rank_group, waiting, weight_sync
from rljob_trainer.workers.elasticity import ScaleWish
from rljob_trainer.workers.placement import ROLLOUT_RESOURCE


class Ref:
    """What a call gave."""

    def __init__(self, value: Any) -> None:
        self.value = value


class Killed(BaseException):
    """The driver is gone."""


def _wait(refs: Sequence[Ref], *, num_returns: int = 1, timeout: float | None = None) -> tuple[list[Ref], list[Ref]]:
    return list(refs[:num_returns]), list(refs[num_returns:])


def _get(ref: Ref, timeout: float | None = None) -> Any:
    if isinstance(ref.value, RayActorError):
        raise ref.value
    return ref.value


FAKE_RAY = SimpleNamespace(
    put=Ref,
    wait=_wait,
    get=_get,
    kill=lambda actor: None,
    available_resources=lambda: {ROLLOUT_RESOURCE: 8.0},
)


class Actor:
    """`actor.method.remote(…)` of an object in this process."""

    def __init__(self, worker: Any, loop: asyncio.AbstractEventLoop) -> None:
        self.worker, self.loop = worker, loop

    def __getattr__(self, name: str) -> Any:
        method = getattr(self.worker, name)

        def remote(*args: Any) -> Ref:
            try:
                value = method(*(arg.value if isinstance(arg, Ref) else arg for arg in args))
                if inspect.isawaitable(value):
                    value = asyncio.run_coroutine_threadsafe(_result(value), self.loop).result(120.0)
            except RayActorError as lost:  # told to whoever asks for the result
                return Ref(lost)
            return Ref(value)

        return SimpleNamespace(remote=remote)


async def _result(value: Any) -> Any:
    return await value


class InProcess:
    """Attempts of one job in one directory."""

    def __init__(self, directory: Path, manifest: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
        self.directory, self.manifest, self._patch, self.attempts = directory, manifest, monkeypatch, 0
        self.stop = StopFlag()
        self.calls = 0

    def run(
        self,
        at_generate: Callable[[int, StopFlag], None] = lambda number, stop: None,
        scale: ScaleWish = lambda: None,
    ) -> None:
        """One attempt. `at_generate` is called before each generation with its number, from 1."""
        self.attempts += 1
        self.stop = StopFlag()
        incarnation = f"{self.attempts:04d}-{self.attempts:08x}"
        (self.directory / "attempts" / incarnation).mkdir(parents=True)
        options = argparse.Namespace(
            dir=self.directory, incarnation=incarnation, attempt=self.attempts, local=True, resume_from=None, quiet=True
        )
        self.calls = 0
        generate = Workers.generate

        def counted(workers: Workers, *arguments: Any) -> Any:
            self.calls += 1
            at_generate(self.calls, self.stop)
            return generate(workers, *arguments)

        with self._patch.context() as patch, self._workers(patch), ExitStack() as stack:
            patch.setattr(setup, "_start_ray", lambda *args: None)
            patch.setattr(Workers, "generate", counted)
            self.progress = ProgressReporter({"step": 0}, [])
            stack.callback(self.progress.close)
            setup.run_job(RLJob.model_validate(self.manifest), options, self.stop, self.progress, stack, None, scale)

    @contextmanager
    def _workers(self, patch: pytest.MonkeyPatch) -> Iterator[None]:
        loop = asyncio.new_event_loop()
        thread = threading.Thread(target=loop.run_forever, daemon=True)
        thread.start()
        made: list[Actor] = []

        def make_actor(cls: type, resource: str, *args: Any, **options: Any) -> Actor:
            made.append(Actor(cls(*args), loop))
            return made[-1]

        # A rank sets this for its process; the engines' would never have it.
        torch.use_deterministic_algorithms(False)
        patch.setattr(torch, "use_deterministic_algorithms", lambda *args, **options: None)
        for module in (engine_pool, generation, waiting, weight_sync):
            patch.setattr(module, "ray", FAKE_RAY)
        for module in (engine_pool, rank_group):
            patch.setattr(module, "make_actor", make_actor)
        try:
            yield
        finally:
            for actor in made:
                actor.shutdown.remote()
            loop.call_soon_threadsafe(loop.stop)
            thread.join(10.0)

    def records(self, kind: str, file: str = "metrics.jsonl") -> list[dict[str, Any]]:
        """Lines of one kind that the last attempt wrote."""
        (path,) = self.directory.glob(f"attempts/{self.attempts:04d}-*/{file}")
        return [record for record in map(json.loads, path.read_text().splitlines()) if record["kind"] == kind]

    def summary(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((self.directory / "summary.json").read_text())
        return found

    def last_step(self) -> int:
        commit = latest_commit(self.directory).commit
        return -1 if commit is None else commit.step
