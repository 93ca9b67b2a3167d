"""A value is worth 1 in whatever notation it is written, and another value 0. RLJOB_PAIRS=20000 draws as many."""

import os

import pytest
from hypothesis import given, settings
from rljob.types import Sample
from rljob_trainer.rewards.dapo import dapo
from rljob_trainer.rewards.deepscaler import deepscaler
from rljob_trainer.rewards.maths import math

from trainer.tests.rewards.notations import bracketed, other_value, same_value

PAIRS = int(os.environ.get("RLJOB_PAIRS", "250"))
EXACT = settings(max_examples=PAIRS, deadline=None)


def by_math(answer: str, label: str) -> float:
    return math(Sample("", [], response=rf"\boxed{{{answer}}}", label=label))


def by_deepscaler(answer: str, label: str) -> float:
    return deepscaler(rf"</think>\boxed{{{answer}}}", label)


@EXACT
@given(pair=same_value())
def test_math_pays_for_a_value_in_any_notation(pair: tuple[str, str]) -> None:
    assert by_math(*pair) == 1.0


@EXACT
@given(pair=other_value())
def test_math_pays_nothing_for_another_value(pair: tuple[str, str]) -> None:
    assert by_math(*pair) == 0.0
    assert by_math(*bracketed(pair)) == 0.0


@EXACT
@given(pair=same_value())
def test_deepscaler_pays_for_a_value_in_any_notation(pair: tuple[str, str]) -> None:
    assert by_deepscaler(*pair) == 1.0
    assert by_deepscaler(*bracketed(pair)) == 1.0


@EXACT
@given(pair=other_value())
def test_deepscaler_pays_nothing_for_another_value(pair: tuple[str, str]) -> None:
    assert by_deepscaler(*pair) == 0.0
    assert by_deepscaler(*bracketed(pair)) == 0.0


@EXACT
@given(pair=other_value())
def test_dapo_pays_nothing_for_another_value(pair: tuple[str, str]) -> None:
    assert dapo(f"Answer: {pair[0]}", pair[1]) == -1.0


@pytest.mark.parametrize("number", [10**20 + 1, 2**53 + 1, 7, 1234567])
def test_dapo_pays_for_an_integer_as_its_normalisation_promises(number: int) -> None:
    for answer in (str(number), f"{number:,}", f"${number}$", f"x = {number}", f"\\boxed{{{number}}}"):
        for label in (number, str(number), f"{number}.0"):
            assert dapo(f"Answer: {answer}", label) == 1.0, (answer, label)
            assert dapo(f"Answer: {answer}", number + 1) == -1.0


def test_dapo_tells_a_mixed_number_from_its_digits_in_a_row() -> None:
    assert dapo("Answer: 1 1/2", "11/2") == -1.0
    assert dapo("Answer: 1 1/2", "1 1/2") == 1.0
