"""Advantages of tokens against their definitions, written out sample by sample in plain Python."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from rljob_trainer.algorithms import estimate_advantages, gae, rloo_advantages, token_rewards, whiten

number = st.floats(-3, 3, width=32, allow_subnormal=False)
token = st.tuples(number, number)  # KL, value
sample = st.tuples(number, st.integers(0, 3), st.lists(token, max_size=6))  # reward, group, tokens
rollouts = st.lists(sample, min_size=1, max_size=8)
ESTIMATORS = ["grpo", "rloo", "reinforce_plus_plus", "reinforce_plus_plus_baseline", "gae"]


def estimate(rollout: list[Any], estimator: str, **options: Any) -> Any:
    tokens = [pair for _, _, pairs in rollout for pair in pairs]
    kl, values = (torch.tensor([pair[which] for pair in tokens], dtype=torch.float64) for which in (0, 1))
    return estimate_advantages(
        estimator,  # type: ignore[arg-type]
        torch.tensor([reward for reward, _, _ in rollout], dtype=torch.float64),
        torch.tensor([group for _, group, _ in rollout]),
        torch.tensor([len(pairs) for _, _, pairs in rollout]),
        kl=kl,
        values=values,
        **options,
    )


def whitened(values: list[float]) -> list[float]:
    if len(values) < 2 or len(set(values)) == 1:
        return [0.0] * len(values)
    return [(v - np.mean(values)) / math.sqrt(np.var(values, ddof=1) + 1e-8) for v in values]


@given(rollouts, st.sampled_from([0.0, 0.3]), st.sampled_from([1.0, 0.7]))
def test_reinforce_plus_plus_is_the_whitened_return(rollout: list[Any], beta: float, gamma: float) -> None:
    expected = []
    for reward, _, tokens in rollout:
        rewards = [-beta * kl for kl, _ in tokens]
        if rewards:
            rewards[-1] += reward
        expected += [
            sum(gamma ** (later - at) * rewards[later] for later in range(at, len(rewards)))
            for at in range(len(rewards))
        ]
    got = estimate(rollout, "reinforce_plus_plus", gamma=gamma, kl_coef=beta).advantages.tolist()
    spread = np.std(expected) if expected else 0.0
    if spread == 0.0 or spread > 1e-5:  # below, rounding decides what is equal
        assert got == pytest.approx(whitened(expected), rel=1e-4, abs=1e-4)


@given(rollouts, st.sampled_from([0.0, 0.3]))
def test_comparisons_stay_within_a_group_whatever_its_size(rollout: list[Any], beta: float) -> None:
    scores = [reward - beta * sum(kl for kl, _ in tokens) for reward, _, tokens in rollout]
    for estimator in ("grpo", "rloo"):
        got = torch.split(
            estimate(rollout, estimator, kl_coef=beta, normalize_by_std=False).advantages,
            [len(tokens) for _, _, tokens in rollout],
        )
        for at, (_, group, tokens) in enumerate(rollout):
            members = [score for score, (_, other, _) in zip(scores, rollout, strict=True) if other == group]
            if estimator == "grpo":
                expected = scores[at] - sum(members) / len(members)
            else:
                rest = sum(members) - scores[at]
                expected = scores[at] - rest / (len(members) - 1) if len(members) > 1 else 0.0
            assert got[at].tolist() == pytest.approx([expected] * len(tokens), rel=1e-5, abs=1e-5)


def test_reinforce_plus_plus_baseline_whitens_over_tokens_not_samples() -> None:
    rollout = [(1.0, 0, [(0, 0)] * 3), (0.0, 0, [(0, 0)]), (1.0, 1, [(0, 0)] * 2), (1.0, 1, [(0, 0)])]
    got = estimate(rollout, "reinforce_plus_plus_baseline").advantages.tolist()
    assert got == pytest.approx(whitened([0.5] * 3 + [-0.5] + [0.0] * 3), rel=1e-5)


@given(rollouts, st.sampled_from([1.0, 0.9]), st.sampled_from([1.0, 0.95, 0.0]))
def test_gae_is_the_discounted_sum_of_td_errors(rollout: list[Any], gamma: float, lam: float) -> None:
    advantages, returns = [], []
    for reward, _, tokens in rollout:
        values = [value for _, value in tokens]
        for at in range(len(values)):
            total = 0.0
            for later in range(at, len(values)):
                last = later == len(values) - 1
                delta = (reward if last else gamma * values[later + 1]) - values[later]
                total += (gamma * lam) ** (later - at) * delta
            advantages.append(total)
            returns.append(total + values[at])
    sizes = torch.tensor([len(tokens) for _, _, tokens in rollout])
    rewards = token_rewards(torch.tensor([reward for reward, _, _ in rollout]), sizes)
    values = torch.tensor([value for _, _, tokens in rollout for _, value in tokens])
    got, goal = gae(rewards, values, sizes, gamma=gamma, lam=lam)
    assert got.tolist() == pytest.approx(advantages, rel=1e-6, abs=1e-6)
    assert goal.tolist() == pytest.approx(returns, rel=1e-6, abs=1e-6)


def test_gae_with_lambda_one_and_no_discount_returns_the_reward() -> None:
    sizes = torch.tensor([3, 0, 2])
    rewards = token_rewards(torch.tensor([2.0, 9.0, -1.0]), sizes)
    _, returns = gae(rewards, torch.randn(5), sizes, gamma=1.0, lam=1.0)
    assert returns.tolist() == pytest.approx([2.0] * 3 + [-1.0] * 2)


@given(rollouts, st.sampled_from(ESTIMATORS), st.randoms(use_true_random=False))
@settings(max_examples=30)
def test_the_order_of_samples_does_not_matter(rollout: list[Any], estimator: str, random: Any) -> None:
    order = list(range(len(rollout)))
    random.shuffle(order)
    sizes = [len(tokens) for _, _, tokens in rollout]
    straight = torch.split(estimate(rollout, estimator, kl_coef=0.1).advantages, sizes)
    mixed = torch.split(
        estimate([rollout[at] for at in order], estimator, kl_coef=0.1).advantages, [sizes[at] for at in order]
    )
    if float(torch.cat(straight).abs().sum() if straight else 0) < 1e-3:
        return
    for place, at in enumerate(order):
        torch.testing.assert_close(mixed[place], straight[at], rtol=1e-3, atol=1e-3)


def test_what_has_nothing_to_be_compared_with_teaches_nothing() -> None:
    alone = [(1.0, 0, [(0, 0)] * 2)]
    for estimator in ("grpo", "rloo", "reinforce_plus_plus_baseline"):
        assert estimate(alone, estimator).advantages.tolist() == [0.0, 0.0]
    assert rloo_advantages(torch.tensor([0.1] * 7), torch.tensor([5] * 7)).tolist() == [0.0] * 7
    assert whiten(torch.tensor([3.0])).tolist() == [0.0]
    assert whiten(torch.full((4,), 0.1, dtype=torch.float64)).tolist() == [0.0] * 4


def test_misuse_is_refused() -> None:
    with pytest.raises(ValueError, match="critic"):
        estimate_advantages("gae", torch.zeros(1), torch.zeros(1), torch.tensor([1]))
    with pytest.raises(ValueError, match="nonsense"):
        estimate([(1.0, 0, [(0, 0)])], "nonsense")
    with pytest.raises(ValueError, match="3 KL values for 2 tokens"):
        token_rewards(torch.zeros(1), torch.tensor([2]), torch.zeros(3))
