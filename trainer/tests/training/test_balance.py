"""Sharing a batch out to ranks: nothing is lost, and no rank gets much more than its part."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rljob.types import Sample
from rljob_api.v1alpha1.algorithm import AlgorithmSpec
from rljob_trainer.rollout.samples import advantages_of, train_batches
from rljob_trainer.training.balance import partition, restore, shares, work

lengths = st.lists(st.integers(1, 30_000), max_size=60)


@given(lengths, st.integers(1, 9), st.booleans())
def test_every_sample_is_in_exactly_one_share(sizes: list[int], ranks: int, balanced: bool) -> None:
    numbers = shares(sizes, ranks, balanced=balanced)
    assert len(numbers) == ranks
    assert sorted(number for own in numbers for number in own) == list(range(len(sizes)))
    assert restore(numbers, numbers) == list(range(len(sizes)))


@given(lengths, st.integers(1, 9))
def test_no_share_exceeds_the_mean_by_more_than_one_item(sizes: list[int], ranks: int) -> None:
    costs = [work(size) for size in sizes]
    loads = [sum(costs[number] for number in own) for own in partition(costs, ranks)]
    assert max(loads) <= sum(costs) / ranks + max(costs, default=0.0) + 1e-6


@given(lengths, st.integers(1, 9))
def test_the_same_lengths_give_the_same_shares(sizes: list[int], ranks: int) -> None:
    assert shares(sizes, ranks, balanced=True) == shares(list(sizes), ranks, balanced=True)


@given(st.lists(st.booleans(), min_size=1, max_size=40), st.integers(1, 5), st.integers(1, 4), st.booleans())
def test_every_scored_sample_of_a_rollout_reaches_exactly_one_rank_in_one_step(
    scored: list[bool], steps: int, ranks: int, balanced: bool
) -> None:
    samples = [
        Sample(prompt="", prompt_ids=[number], response_ids=[1] * (number % 7 + 1), loss_mask=[1] * (number % 7 + 1),
               status="completed" if good else "failed", reward=float(number % 2), group=number // 4)
        for number, good in enumerate(scored)
    ]  # fmt: skip
    advantages = advantages_of(samples, AlgorithmSpec())
    reached = []
    for batch in train_batches(samples, advantages, steps):
        sizes = [len(sample.prompt_ids) + len(sample.response_ids) for sample in batch]
        for own in shares(sizes, ranks, balanced=balanced):
            reached += [batch[number].prompt_ids[0] for number in own]
    assert sorted(reached) == [number for number, good in enumerate(scored) if good]


def test_long_tailed_lengths_are_balanced_within_five_percent() -> None:
    draw = random.Random(1)
    sizes = [min(16_384, int(draw.lognormvariate(6.5, 1.0)) + 1) for _ in range(256)]
    costs = [work(size) for size in sizes]
    loads = [sum(costs[number] for number in own) for own in partition(costs, 8)]
    in_turn = [sum(costs[number] for number in own) for own in shares(sizes, 8, balanced=False)]
    assert max(loads) / (sum(loads) / 8) <= 1.05 < max(in_turn) / (sum(in_turn) / 8)


def test_a_rank_that_answers_for_too_few_is_noticed() -> None:
    with pytest.raises(ValueError, match="argument"):
        restore([[1], [2]], [[0, 2], [1]])
    with pytest.raises(ValueError, match="0 ranks"):
        partition([1.0], 0)
    with pytest.raises(ValueError, match="nan"):
        partition([1.0, float("nan")], 2)
