"""Scores of evaluation sets."""

from itertools import combinations
from math import comb

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rljob.types import Sample
from rljob_trainer.orchestrator.evaluate import ks, pass_at_k, scores


@given(st.data())
def test_pass_at_k_is_the_share_of_draws_with_a_right_one(data: st.DataObject) -> None:
    n = data.draw(st.integers(1, 9))
    right = data.draw(st.lists(st.booleans(), min_size=n, max_size=n))
    k = data.draw(st.integers(1, n))
    draws = list(combinations(right, k))
    assert pass_at_k(n, sum(right), k) == pytest.approx(sum(any(draw) for draw in draws) / len(draws))


def test_pass_at_k_of_many_samples_does_not_overflow() -> None:
    assert pass_at_k(10_000, 3, 100) == pytest.approx(1 - comb(9997, 100) / comb(10_000, 100))


@pytest.mark.parametrize(("n", "correct", "k"), [(4, 5, 1), (4, 1, 5), (4, -1, 1), (4, 1, 0)])
def test_pass_at_k_of_impossible_counts_is_refused(n: int, correct: int, k: int) -> None:
    with pytest.raises(ValueError, match=f"pass@{k}"):
        pass_at_k(n, correct, k)


def test_ks() -> None:
    assert [ks(n) for n in (1, 2, 5, 8, 16)] == [[1], [1, 2], [1, 2, 4, 5], [1, 2, 4, 8], [1, 2, 4, 8, 16]]


def sample(group: int, index: int, right: float, source: str = "a", **fields: object) -> Sample:
    made = Sample("p", [1], group=group, index=index, source=source, response_ids=[1, 2], status="completed")
    made.reward, made.reward_parts = right + 0.1, {"em": right}
    for key, value in fields.items():
        setattr(made, key, value)
    return made


def test_scores_of_a_set_with_several_samples_and_sources() -> None:
    """A format score of 0.2 is not right; a failed sample is wrong and counted."""
    samples = [sample(0, i, float(i == 0)) for i in range(4)]
    samples += [sample(1, i, 0.2, source="b") for i in range(3)]
    samples.append(sample(1, 3, 0.0, source="b", status="failed", reward=None, reward_parts={}))
    values = scores(samples, "em")
    assert values["score"] == 1 / 8
    assert (values["score/a"], values["score/b"]) == (1 / 4, 0.0)
    assert values["pass@1"] == pytest.approx(1 / 8)
    assert values["pass@2"] == pytest.approx(1 / 4)
    assert values["pass@4"] == 1 / 2
    assert (values["failed"], values["samples"], values["prompts"]) == (1 / 8, 8.0, 2.0)


def test_without_a_judge_the_score_is_the_mean_reward() -> None:
    assert scores([sample(0, 0, 0.5), sample(1, 0, 0.1)], None)["score"] == pytest.approx(0.4)
    assert "pass@1" not in scores([sample(0, 0, 1.0)], "em")
