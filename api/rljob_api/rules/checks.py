"""What crosses fields: everything that is wrong with a job whose fields, each by itself, are right.

The CLI says it beforehand, the operator as `Accepted=False`, the trainer before it starts. The CRD's CEL rules
(`cel.py`) say the same at admission, in the same words, as far as CEL can; a test holds the two together.
"""

from collections.abc import Callable, Iterator

from rljob_api.manifest.arithmetic import (
    batch_plan,
    data_parallel_size,
    generates,
    max_context_length,
    rollout_gpus,
    shares_gpus,
    trainer_gpus,
    trains,
    trains_rl,
)
from rljob_api.manifest.availability import unavailable
from rljob_api.manifest.errors import FieldError, Problem
from rljob_api.rules.checks_sections import SECTION_CHECKS
from rljob_api.v1alpha1.job import RLJob, RLJobSpec

__all__ = ["Problem", "check", "check_spec", "inconsistent"]


def check(job: RLJob) -> list[Problem]:
    """All that keeps this job from running: what contradicts itself, and what this version does not do yet."""
    return check_spec(job.spec)


def check_spec(spec: RLJobSpec) -> list[Problem]:
    """As `check`, of a spec alone. Never raises."""
    refused = list(unavailable(spec))
    paths = {problem.path for problem in refused}
    return [*refused, *(problem for problem in inconsistent(spec) if problem.path not in paths)]


def inconsistent(spec: RLJobSpec) -> list[Problem]:
    """What contradicts itself, whatever the version can do."""
    return [problem for rule in (*_CHECKS, *SECTION_CHECKS) for problem in rule(spec)]


def _batch(spec: RLJobSpec) -> Iterator[Problem]:
    if not trains_rl(spec):
        return
    try:
        batch_plan(spec)
    except FieldError as error:
        yield error.problem


def _required_sections(spec: RLJobSpec) -> Iterator[Problem]:
    if spec.mode == "Train" and spec.algorithm.type == "sft" and spec.sft is None:
        yield Problem("spec.sft", "required when spec.algorithm.type is sft")
    needs = {"Train": "for reinforcement learning", "Generate": "to generate", "Evaluate": "to evaluate"}[spec.mode]
    if spec.reward is None and (trains_rl(spec) or spec.mode != "Train"):
        yield Problem("spec.reward", f"required {needs}")
    if spec.data.train is None and (trains_rl(spec) or spec.mode == "Generate"):
        yield Problem("spec.data.train", f"required {needs}")
    if spec.mode == "Evaluate" and not spec.evaluation.datasets:
        yield Problem("spec.evaluation.datasets", "at least one data set is required to evaluate")
    if spec.reward is None and spec.mode == "Train" and spec.algorithm.type == "sft" and spec.evaluation.datasets:
        yield Problem("spec.reward", "required to score spec.evaluation.datasets")


def _parallelism(spec: RLJobSpec) -> Iterator[Problem]:
    if not trains(spec):
        return
    parallel = spec.trainer.parallelism
    if parallel.sequence and parallel.tensor == 1:
        yield Problem("spec.trainer.parallelism.sequence", "needs tensor > 1, but tensor is 1")
    try:
        copies = data_parallel_size(spec)
    except FieldError as error:
        yield error.problem
        return
    if copies % parallel.expert:
        yield Problem(
            "spec.trainer.parallelism.expert",
            f"{parallel.expert} does not divide the data-parallel size {copies}",
        )
    if trains_rl(spec):
        try:
            batch = batch_plan(spec).global_batch_size
        except FieldError:
            batch = 0  # Reported by _batch.
        if batch % copies:
            yield Problem(
                "spec.trainer.globalBatchSize",
                f"{batch} samples per optimizer step cannot be shared equally by {copies} data-parallel ranks",
            )
    if spec.sft and spec.sft.batch_size % copies:
        yield Problem(
            "spec.sft.batchSize",
            f"{spec.sft.batch_size} rows per optimizer step cannot be shared equally by {copies} data-parallel ranks",
        )


def _gpus(spec: RLJobSpec) -> Iterator[Problem]:
    trainer, rollout = spec.trainer, spec.rollout
    if trains(spec):
        if trainer.backend == "megatron" and trainer.gpus_per_replica == 0:
            yield Problem(
                "spec.trainer.backend", "megatron needs GPUs, but spec.trainer.gpusPerReplica is 0; use fsdp on CPU"
            )
        if trainer.gpus_per_replica > 0 and trainer.ranks_per_replica > 1:
            yield Problem(
                "spec.trainer.ranksPerReplica",
                f"{trainer.ranks_per_replica} is for CPU; with gpusPerReplica {trainer.gpus_per_replica} "
                "there is one rank per GPU",
            )
        if trainer.backend != "megatron" and trainer.megatron_args:
            yield Problem("spec.trainer.megatronArgs", f"has no effect with backend {trainer.backend}; remove it")
    if not generates(spec):
        return
    colocated = shares_gpus(spec)
    if rollout.engine == "sglang" and rollout.gpus_per_engine == 0 and not colocated:
        yield Problem("spec.rollout.engine", "sglang needs GPUs, but spec.rollout.gpusPerEngine is 0; use torch on CPU")
    if colocated and rollout_gpus(spec) != trainer_gpus(spec):
        yield Problem(
            "spec.rollout.gpusPerEngine",
            f"colocated engines use the trainer's GPUs: spec.rollout.replicas × gpusPerEngine = "
            f"{rollout.replicas} × {rollout.gpus_per_engine} = {rollout_gpus(spec)}, but the trainer has "
            f"{trainer.replicas} × {trainer.gpus_per_replica} = {trainer_gpus(spec)}; leave gpusPerEngine out",
        )


def _precision(spec: RLJobSpec) -> Iterator[Problem]:
    if trains(spec) and spec.trainer.gpus_per_replica == 0 and spec.model.dtype == "float16":
        yield Problem("spec.model.dtype", "float16 needs GPUs; use float32 on CPU")


def _staleness(spec: RLJobSpec) -> Iterator[Problem]:
    if spec.placement.max_staleness is not None and spec.placement.type != "async":
        yield Problem(
            "spec.placement.maxStaleness", f"is for placement type async, but the type is {spec.placement.type}"
        )
    if spec.placement.offload_trainer and spec.placement.type != "colocated":
        yield Problem(
            "spec.placement.offloadTrainer", f"is for placement type colocated, but the type is {spec.placement.type}"
        )


def _lengths(spec: RLJobSpec) -> Iterator[Problem]:
    train, rollout = spec.data.train, spec.rollout
    if train and rollout.max_context_length is not None and rollout.max_context_length <= train.max_prompt_length:
        yield Problem(
            "spec.rollout.maxContextLength",
            f"{rollout.max_context_length} leaves no room for a response after "
            f"spec.data.train.maxPromptLength {train.max_prompt_length}",
        )
    init = spec.model.random_init
    if init is None:
        return
    limit = init.max_position_embeddings
    if trains_rl(spec) and train and max_context_length(spec) > limit:
        yield Problem(
            "spec.model.randomInit.maxPositionEmbeddings",
            f"{limit} is below the longest rollout of {max_context_length(spec)} tokens "
            "(spec.rollout.maxContextLength, or data.train.maxPromptLength + rollout.sampling.maxResponseLength)",
        )
    if trains(spec) and spec.sft and spec.sft.max_sequence_length > limit:
        yield Problem(
            "spec.sft.maxSequenceLength",
            f"{spec.sft.max_sequence_length} is above spec.model.randomInit.maxPositionEmbeddings {limit}",
        )


_CHECKS: tuple[Callable[[RLJobSpec], Iterator[Problem]], ...] = (
    _required_sections,
    _batch,
    _parallelism,
    _gpus,
    _precision,
    _staleness,
    _lengths,
)
