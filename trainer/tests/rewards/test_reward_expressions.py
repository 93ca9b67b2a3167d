"""Reading answers: arithmetic against exact fractions, and texts that are no answers at all."""

import contextlib
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rljob_trainer.rewards import expression
from rljob_trainer.rewards.guard import TooLargeError, guard
from rljob_trainer.rewards.text import last_boxed, without_end_tokens

Tree = tuple[str, Fraction]


def joined(parts: tuple[Tree, str, Tree]) -> Tree:
    (left, one), sign, (right, other) = parts
    if sign == "/" and other == 0:
        sign = "*"
    value = {"+": one + other, "-": one - other, "*": one * other, "/": one / (other or 1)}[sign]
    return f"({left}){sign}({right})", value


numbers: st.SearchStrategy[Tree] = st.integers(0, 999).map(lambda number: (str(number), Fraction(number)))
trees = st.recursive(numbers, lambda inner: st.tuples(inner, st.sampled_from("+-*/"), inner).map(joined), max_leaves=8)


@given(trees)
@settings(deadline=None)
def test_arithmetic_is_exact(tree: Tree) -> None:
    text, value = tree
    result = expression.parse(text)
    assert (int(result.p), int(result.q)) == (value.numerator, value.denominator)


@pytest.mark.parametrize(
    ("text", "same"), [("2x", "x*2"), ("-2^2", "-4"), ("2^-1", "1/2"), ("sqrt(4)", "2"), ("1.5", "3/2"), ("2(3)", "6")]
)
def test_notation(text: str, same: str) -> None:
    assert expression.parse(text) == expression.parse(same)


@given(
    st.lists(st.sampled_from(["2", "x", "+", "-", "*", "/", "^", "(", ")", "sqrt", "inf", "pi", ".", " "]), max_size=9)
)
@settings(deadline=None)
def test_whatever_is_written_is_read_or_refused(parts: list[str]) -> None:
    with contextlib.suppress(ValueError):
        expression.parse("".join(parts))


@given(st.text(alphabet="\\boxed{}f 2$<|im_end|>", max_size=80))
def test_boxes_and_end_tokens_never_fail(text: str) -> None:
    inner = last_boxed(text)
    assert inner is None or inner in text
    assert text.startswith(without_end_tokens(text))


@pytest.mark.parametrize("text", ["2^100", "x^{2024}", "10^{100}", "2^{2^{3}}", "170!", "e^{x^{2}}", "1.5^{20}"])
def test_ordinary_powers_are_verified(text: str) -> None:
    assert guard(text) == text


@pytest.mark.parametrize("text", ["9^{9^9}", "10**10**10", "2^9999999", "((2)^{3}^{4}^{5}^{6})", "5000!", "(" * 61])
def test_what_is_too_large_is_refused(text: str) -> None:
    with pytest.raises(TooLargeError, match="not verified"):
        guard(text)
