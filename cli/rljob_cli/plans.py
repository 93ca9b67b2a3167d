"""`rljob plan`: what a manifest amounts to, as data."""

from pathlib import Path
from typing import Any

from rljob_api.errors import FieldError, UserError
from rljob_api.rules import arithmetic
from rljob_api.rules.checks import check
from rljob_api.v1alpha1.job import RLJob, RLJobSpec

from rljob_cli.estimate import as_data, memory_of, shape_of

NO_UID = "00000000-0000-0000-0000-000000000000"
"""Stands in the owner references of objects that are only shown."""


def plan_of(job: RLJob, directories: list[Path]) -> dict[str, Any]:
    """Arithmetic, GPUs, memory, pods, children and problems of a job. Files are looked for in `directories`."""
    problems = [{"path": problem.path, "message": problem.message} for problem in check(job)]
    shape = shape_of(job, directories)
    children: list[dict[str, Any]] = []
    if not problems:
        try:
            children = manifests_of(job)
        except UserError as error:
            problems.append({"path": "spec", "message": error.message})
    return {
        "name": job.metadata.name,
        "batch": _batch(job.spec),
        "steps": _steps(job.spec),
        "ranks": _ranks(job.spec),
        "gpus": _gpus(job.spec),
        "pods": _pods(job.spec),
        "queue": job.spec.lifecycle.queue.to_api() if job.spec.lifecycle.queue else None,
        "model": {"parameters": shape.parameters, "vocabulary": shape.vocabulary} if shape else None,
        "memory": as_data(memory_of(job.spec, shape)) if shape else None,
        "children": [{"kind": child["kind"], "name": child["metadata"]["name"]} for child in children],
        "problems": problems,
    }


def manifests_of(job: RLJob) -> list[dict[str, Any]]:
    """Every object that the operator would create for the first attempt of this job."""
    from rljob_operator.resources.children import Wanted, children
    from rljob_operator.resources.context import Context
    from rljob_operator.resources.rayjob import ray_job
    from rljob_operator.settings import Settings

    context = Context(job, job.metadata.namespace or "default", job.metadata.uid or NO_UID, Settings())
    return [*children(context, Wanted(attempt=1, request={})), ray_job(context, 1, None)]


def _batch(spec: RLJobSpec) -> dict[str, int] | None:
    if not arithmetic.trains_rl(spec):
        return None
    try:
        batch = arithmetic.batch_plan(spec)
    except FieldError:
        return None
    return {
        "promptsPerRollout": batch.prompts_per_rollout,
        "samplesPerPrompt": batch.samples_per_prompt,
        "samplesPerRollout": batch.samples_per_rollout,
        "globalBatchSize": batch.global_batch_size,
        "numStepsPerRollout": batch.num_steps_per_rollout,
    }


def _steps(spec: RLJobSpec) -> dict[str, int | None] | None:
    try:
        return {
            "rollouts": spec.rollout.num_rollout if arithmetic.trains_rl(spec) else 0,
            "sft": arithmetic.sft_steps(spec),
            "rl": arithmetic.rl_steps(spec),
            "total": arithmetic.total_steps(spec),
        }
    except FieldError:
        return None


def _ranks(spec: RLJobSpec) -> dict[str, int | None]:
    try:
        copies: int | None = arithmetic.data_parallel_size(spec)
    except FieldError:
        copies = None
    parallel = spec.trainer.parallelism
    return {
        "world": arithmetic.world_size(spec) if arithmetic.trains(spec) else 0,
        "dataParallel": copies,
        "tensor": parallel.tensor,
        "pipeline": parallel.pipeline,
        "context": parallel.context,
        "expert": parallel.expert,
        "engines": arithmetic.engine_count(spec),
    }


def _gpus(spec: RLJobSpec) -> dict[str, int]:
    return {
        "trainer": arithmetic.trainer_gpus(spec),
        "rollout": arithmetic.rollout_gpus(spec),
        "retriever": arithmetic.retriever_gpus(spec),
        "total": arithmetic.total_gpus(spec),
    }


def _pods(spec: RLJobSpec) -> dict[str, int]:
    return {
        "head": 1,
        "trainer": spec.trainer.replicas if arithmetic.trains(spec) else 0,
        "rollout": arithmetic.rollout_pods(spec),
        "retriever": spec.retriever.replicas if spec.retriever else 0,
    }
