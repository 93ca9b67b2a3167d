"""Where ranks stand, and layouts that do not fit."""

import importlib.util

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rljob_api.errors import UserError
from rljob_api.rules.arithmetic import data_parallel_rank, data_parallel_size
from rljob_api.v1alpha1.job import RLJob
from rljob_api.v1alpha1.trainer import Parallelism
from rljob_trainer.training.megatron.layout import Layout, check_model, layout_of

from trainer.tests.training import tiny

small = st.integers(1, 4)


@given(tensor=small, pipeline=small, context=small, data=small)
def test_every_rank_has_a_place_of_its_own(tensor: int, pipeline: int, context: int, data: int) -> None:
    world = tensor * pipeline * context * data
    layout = layout_of(Parallelism(tensor=tensor, pipeline=pipeline, context=context), world)
    places = [layout.coordinates(rank) for rank in range(world)]
    assert layout.data == data
    assert len(set(places)) == world
    assert places == sorted(places, key=lambda place: (place.pipeline, place.data, place.context, place.tensor))


@given(tensor=small, pipeline=small, context=small, data=small)
def test_the_driver_deals_shares_as_the_ranks_expect(tensor: int, pipeline: int, context: int, data: int) -> None:
    world = tensor * pipeline * context * data
    job = RLJob.model_validate(
        {
            "apiVersion": "rljob.io/v1alpha1",
            "kind": "RLJob",
            "metadata": {"name": "a"},
            "spec": {
                "model": {"path": "m"},
                "trainer": {
                    "replicas": world,
                    "parallelism": {"tensor": tensor, "pipeline": pipeline, "context": context},
                },
            },
        }
    )
    layout = layout_of(job.spec.trainer.parallelism, world)
    assert data_parallel_size(job.spec) == layout.data
    assert [data_parallel_rank(job.spec, rank) for rank in range(world)] == [
        layout.coordinates(rank).data for rank in range(world)
    ]


@pytest.mark.parametrize(
    ("parallelism", "world", "message"),
    [
        ({"tensor": 2, "pipeline": 2}, 6, "2 × 2 × 1 = 4 does not divide the 6 ranks"),
        ({"expert": 3}, 4, "expert: 3 does not divide the 4 ranks"),
        ({"sequence": True}, 2, "sequence needs tensor > 1"),
    ],
)
def test_layouts_that_do_not_fit_are_refused_with_the_numbers(
    parallelism: dict[str, int], world: int, message: str
) -> None:
    with pytest.raises(UserError, match=message):
        layout_of(Parallelism.model_validate(parallelism), world)


@pytest.mark.parametrize(
    ("layout", "message"),
    [
        (Layout(4, tensor=4), "4 must divide the model's 8 query heads and 2 key/value heads"),
        (Layout(2, pipeline=2), "2 must divide the model's 3 layers"),
        (Layout(2, expert=2), "the model has no experts"),
    ],
)
def test_models_that_cannot_be_cut_so_are_refused(layout: Layout, message: str) -> None:
    with pytest.raises(UserError, match=message):
        check_model(layout, layers=3, heads=8, groups=2, experts=0)


def test_experts_with_tensor_ranks_need_sequence_parallelism() -> None:
    with pytest.raises(UserError, match="sequence"):
        check_model(Layout(2, tensor=2), layers=2, heads=4, groups=2, experts=4)


@pytest.mark.skipif(importlib.util.find_spec("megatron") is not None, reason="megatron-core is installed here")
def test_without_megatron_core_the_error_says_what_to_install() -> None:
    from rljob_trainer.training.rank import TrainerRank

    with pytest.raises(UserError, match="megatron-core is not installed"):
        TrainerRank(tiny.job(backend="megatron", gpusPerReplica=1), ".", 0, 1)
