"""The batch arithmetic holds, or is refused with its numbers."""

from collections.abc import Callable

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from rljob_api.errors import FieldError
from rljob_api.rules import arithmetic
from rljob_api.v1alpha1.job import RLJobSpec

small = st.integers(1, 64)


def spec(**sections: object) -> RLJobSpec:
    return RLJobSpec.model_validate({"model": {"path": "m"}, **sections})


def attempt[T](function: Callable[[RLJobSpec], T], job: RLJobSpec) -> T | FieldError:
    """What it returns, or what it raises."""
    try:
        return function(job)
    except FieldError as refused:
        return refused


@given(prompts=small, group=small, batch=st.none() | small, steps=st.none() | small)
def test_resolved_sizes_use_every_sample_once(prompts: int, group: int, batch: int | None, steps: int | None) -> None:
    job = spec(
        rollout={"batchSize": prompts, "nSamplesPerPrompt": group},
        trainer={"globalBatchSize": batch, "numStepsPerRollout": steps},
    )
    plan = attempt(arithmetic.batch_plan, job)
    if isinstance(plan, FieldError):
        samples = prompts * group
        assert str(samples) in plan.message
        assert (batch or 1) * (steps or 1) != samples
        assert batch is None or steps is None or batch * steps != samples
        return
    assert plan.samples_per_rollout == prompts * group
    assert plan.global_batch_size * plan.num_steps_per_rollout == plan.samples_per_rollout
    assert batch in (None, plan.global_batch_size)
    assert steps in (None, plan.num_steps_per_rollout)


@given(prompts=small, group=small, divisor=small)
def test_what_is_left_out_is_computed(prompts: int, group: int, divisor: int) -> None:
    assume(prompts * group % divisor == 0)
    rollout = {"batchSize": prompts, "nSamplesPerPrompt": group}
    by_steps = arithmetic.batch_plan(spec(rollout=rollout, trainer={"numStepsPerRollout": divisor}))
    by_batch = arithmetic.batch_plan(spec(rollout=rollout, trainer={"globalBatchSize": prompts * group // divisor}))
    assert by_steps == by_batch


@given(
    nodes=small,
    gpus=st.integers(0, 8),
    ranks=st.integers(1, 8),
    tensor=st.integers(1, 8),
    pipeline=st.integers(1, 4),
    context=st.integers(1, 4),
)
def test_ranks_are_shared_out_whole(
    nodes: int, gpus: int, ranks: int, tensor: int, pipeline: int, context: int
) -> None:
    parallel = {"tensor": tensor, "pipeline": pipeline, "context": context}
    job = spec(trainer={"replicas": nodes, "gpusPerReplica": gpus, "ranksPerReplica": ranks, "parallelism": parallel})
    world = arithmetic.world_size(job)
    assert world == nodes * (gpus or ranks)
    copies = attempt(arithmetic.data_parallel_size, job)
    if isinstance(copies, FieldError):
        assert world % (tensor * pipeline * context)
        assert f"the {world} trainer ranks" in copies.message
        return
    assert copies * tensor * pipeline * context == world


@given(rows=st.integers(1, 10_000), batch=small, epochs=st.floats(0.1, 5))
def test_sft_by_epochs_reads_every_row(rows: int, batch: int, epochs: float) -> None:
    job = spec(sft={"dataset": {"path": "d"}, "batchSize": batch, "numEpochs": epochs})
    steps = arithmetic.sft_steps(job, rows)
    assert steps is not None
    assert steps * batch >= rows * epochs - 1e-6
    assert (steps - 1) * batch < rows * epochs
    assert arithmetic.total_steps(job) is None


def test_total_steps_are_those_of_sft_and_rl() -> None:
    job = spec(
        sft={"dataset": {"path": "d"}, "numSteps": 100},
        rollout={"numRollout": 20},
        trainer={"numStepsPerRollout": 2},
    )
    assert arithmetic.total_steps(job) == 140
    assert arithmetic.total_steps(job.model_copy(update={"mode": "Evaluate"})) == 0


@pytest.mark.parametrize(
    ("placement", "engine_gpus", "total"), [("disaggregated", 2, 12), ("colocated", 0, 8), ("colocated", 4, 8)]
)
def test_colocated_engines_cost_no_further_gpus(placement: str, engine_gpus: int, total: int) -> None:
    job = spec(
        placement={"type": placement},
        trainer={"gpusPerReplica": 8},
        rollout={"replicas": 2, "gpusPerEngine": engine_gpus},
    )
    assert arithmetic.total_gpus(job) == total
