"""From an engine's name to the engine. Its entry in the catalogue says what builds it; no other engine is imported."""

import pkgutil
from collections.abc import Awaitable, Callable
from pathlib import Path

from rljob_api.catalogue.engines import ENGINES
from rljob_api.v1alpha1.job import RLJobSpec

from rljob_trainer.inference.interface import InferenceEngine

Build = Callable[[RLJobSpec, Path, int], Awaitable[InferenceEngine]]


async def build_engine(spec: RLJobSpec, job_dir: str | Path, engine_index: int) -> InferenceEngine:
    """The engine of `spec`, started on this event loop, without weights. `engine_index`: its number within the job.

    Raises UserError for what the engine does not do or know, and where its packages are not installed.
    """
    build: Build = pkgutil.resolve_name(ENGINES[spec.rollout.engine].build)
    return await build(spec, Path(job_dir), engine_index)
