"""Puts a torch engine together for a job."""

import asyncio
from pathlib import Path

import torch
from rljob_api.errors import UserError
from rljob_api.rules.arithmetic import engine_context_length
from rljob_api.v1alpha1.job import RLJobSpec

from rljob_trainer.inference.torch_engine.engine import TorchEngine, TorchEngineOptions
from rljob_trainer.models import build_config, end_of_sequence_ids, load_tokenizer
from rljob_trainer.models.build import DTYPES


async def build(spec: RLJobSpec, job_dir: Path, engine_index: int) -> TorchEngine:
    """The engine of `spec`, started, without weights. Raises UserError for `engineArgs` that it does not know, and for
    several GPUs."""
    return await asyncio.to_thread(_build, spec, job_dir)


def _build(spec: RLJobSpec, job_dir: Path) -> TorchEngine:
    if spec.rollout.gpus_per_engine > 1:
        raise UserError(
            f"spec.rollout.gpusPerEngine: the torch engine uses one GPU, not {spec.rollout.gpus_per_engine}."
        )
    device = "cuda" if spec.rollout.gpus_per_engine else "cpu"
    if device == "cpu":
        torch.set_num_threads(spec.trainer.threads_per_rank)
    tokenizer = load_tokenizer(spec.model, job_dir)
    config = build_config(spec.model, job_dir, tokenizer)
    deterministic = spec.deterministic if spec.deterministic is not None else device == "cpu"
    options = TorchEngineOptions.from_args(
        spec.rollout.engine_args, deterministic=deterministic, device=device, dtype=DTYPES[spec.model.dtype]
    )
    eos_ids = end_of_sequence_ids(spec.model, job_dir, config, tokenizer)
    longest = engine_context_length(spec, config.max_position_embeddings)
    return TorchEngine(config, tokenizer, longest, options, eos_ids=eos_ids)
