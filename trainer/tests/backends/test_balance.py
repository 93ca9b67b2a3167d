"""Sharing a batch out to ranks: nothing is lost, and no rank gets much more than its part."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rljob_trainer.backends.balance import partition, restore, shares, work

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
