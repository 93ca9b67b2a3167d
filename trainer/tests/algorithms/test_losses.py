"""Losses against their published formulas, written out independently in float64 with numpy, token by token."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from rljob_trainer.algorithms import (
    grpo_advantages,
    kl_estimate,
    ppo_clip_loss,
    token_entropy,
    token_weights,
)

logprob = st.floats(-12, -0.0078125, width=32, allow_subnormal=False)
advantage = st.floats(-3, 3, width=32, allow_subnormal=False)


def reference_ppo(lp: float, old: float, adv: float, low: float, high: float, dual: float | None) -> float:
    ratio = math.exp(lp - old)
    value = min(ratio * adv, min(max(ratio, 1 - low), 1 + high) * adv)
    if dual is not None and adv < 0:
        value = max(value, dual * adv)
    return -value


@given(st.lists(st.tuples(logprob, logprob, advantage), min_size=1, max_size=20), st.sampled_from([None, 1.5, 3.0]))
def test_ppo_clip_is_the_published_objective(tokens: list[tuple[float, float, float]], dual: float | None) -> None:
    lp, old, adv = (torch.tensor(column, dtype=torch.float64) for column in zip(*tokens, strict=True))
    loss, _, ratio = ppo_clip_loss(lp, old, adv, eps_clip=0.2, eps_clip_high=0.28, dual_clip=dual)
    expected = [reference_ppo(a, b, c, 0.2, 0.28, dual) for a, b, c in tokens]
    np.testing.assert_allclose(loss.numpy(), expected, rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(ratio.numpy(), [math.exp(a - b) for a, b, _ in tokens], rtol=1e-12)


@pytest.mark.parametrize(
    ("ratio", "adv", "clipped", "gradient"),
    [
        (1.0, 1.0, False, -1.0),
        (1.27, 1.0, False, -1.27),
        (1.29, 1.0, True, 0.0),  # beyond the upper bound 1.28 a good token gets no more
        (1.29, -1.0, False, 1.29),  # but a bad one is still pushed down
        (0.79, -1.0, True, 0.0),
        (0.79, 1.0, False, -0.79),
    ],
)
def test_gradient_stops_where_the_clip_says(ratio: float, adv: float, clipped: bool, gradient: float) -> None:
    lp = torch.tensor([math.log(ratio)], dtype=torch.float64, requires_grad=True)
    loss, was_clipped, _ = ppo_clip_loss(
        lp, torch.zeros(1, dtype=torch.float64), torch.tensor([adv]), eps_clip=0.2, eps_clip_high=0.28
    )
    loss.sum().backward()
    assert bool(was_clipped) is clipped
    assert lp.grad is not None
    assert lp.grad.item() == pytest.approx(gradient, rel=1e-6)


def test_upper_clip_equals_lower_by_default() -> None:
    lp = torch.tensor([math.log(1.25)])
    loss, was_clipped, _ = ppo_clip_loss(lp, torch.zeros(1), torch.ones(1), eps_clip=0.2)
    assert bool(was_clipped)
    assert loss.item() == pytest.approx(-1.2)


def test_dual_clip_bounds_the_loss_of_a_bad_token() -> None:
    lp = torch.tensor([math.log(50.0)], requires_grad=True)
    loss, was_clipped, _ = ppo_clip_loss(lp, torch.zeros(1), -torch.ones(1), eps_clip=0.2, dual_clip=3.0)
    loss.sum().backward()
    assert loss.item() == 3.0
    assert bool(was_clipped)
    assert lp.grad is not None
    assert lp.grad.item() == 0.0
    with pytest.raises(ValueError, match="above 1"):
        ppo_clip_loss(torch.zeros(1), torch.zeros(1), torch.zeros(1), eps_clip=0.2, dual_clip=0.5)


@given(st.lists(st.tuples(logprob, logprob), min_size=1, max_size=20))
def test_kl_estimators_are_schulmans(tokens: list[tuple[float, float]]) -> None:
    lp, ref = (np.array(column) for column in zip(*tokens, strict=True))
    ratio = np.exp(ref - lp)  # π_ref / π
    expected = {"k1": -np.log(ratio), "k2": 0.5 * np.log(ratio) ** 2, "k3": (ratio - 1) - np.log(ratio)}
    for name, values in expected.items():
        got = kl_estimate(torch.tensor(lp), torch.tensor(ref), name)  # type: ignore[arg-type]
        np.testing.assert_allclose(got.numpy(), values, rtol=1e-9, atol=1e-9)
    clamped = kl_estimate(torch.tensor(lp), torch.tensor(ref), "low_var_kl")
    np.testing.assert_allclose(clamped.numpy(), np.minimum(expected["k3"], 10.0), rtol=1e-9, atol=1e-9)


def test_k3_is_an_unbiased_kl_with_the_right_gradient_at_equality() -> None:
    generator = torch.Generator().manual_seed(0)
    p, q = (torch.randn(6, generator=generator, dtype=torch.float64).log_softmax(0) for _ in range(2))
    exact = (p.exp() * (p - q)).sum()
    for name in ("k1", "k3"):
        assert (p.exp() * kl_estimate(p, q, name)).sum().item() == pytest.approx(exact.item(), rel=1e-12)
    same = p.clone().requires_grad_()
    kl_estimate(same, p, "low_var_kl").sum().backward()
    assert same.grad is not None
    assert same.grad.abs().max().item() == 0.0


def test_low_var_kl_survives_an_odd_token() -> None:
    value = kl_estimate(torch.tensor([-90.0]), torch.tensor([0.0]), "low_var_kl")
    assert value.item() == 10.0
    with pytest.raises(ValueError, match="k9"):
        kl_estimate(torch.zeros(1), torch.zeros(1), "k9")  # type: ignore[arg-type]


def test_entropy() -> None:
    assert token_entropy(torch.zeros(2, 8)).tolist() == pytest.approx([math.log(8)] * 2)
    ruled_out = torch.tensor([[0.0, 0.0, -math.inf, -math.inf]])
    assert token_entropy(ruled_out).item() == pytest.approx(math.log(2))
    logits = torch.randn(5, 7, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    expected = torch.distributions.Categorical(logits=logits).entropy()
    torch.testing.assert_close(token_entropy(logits), expected)


@given(
    st.lists(
        st.lists(st.floats(0, 1, width=32, allow_subnormal=False), min_size=1, max_size=6), min_size=1, max_size=5
    ),
    st.booleans(),
    st.randoms(use_true_random=False),
)
def test_grpo_normalises_each_group_within_itself(groups: list[list[float]], by_std: bool, random: object) -> None:
    flat = [(number, reward) for number, group in enumerate(groups) for reward in group]
    random.shuffle(flat)  # type: ignore[attr-defined]
    got = grpo_advantages(
        torch.tensor([reward for _, reward in flat], dtype=torch.float64),
        torch.tensor([number * 7 - 3 for number, _ in flat]),
        normalize_by_std=by_std,
    )
    for (number, reward), value in zip(flat, got.tolist(), strict=True):
        group = np.array(groups[number])
        if len(set(groups[number])) == 1:
            assert value == 0.0
            continue
        expected = reward - group.mean()
        if by_std:
            expected /= group.std(ddof=1) + 1e-6
        assert value == pytest.approx(expected, rel=1e-5, abs=1e-6)


def test_a_group_of_equal_rewards_teaches_nothing() -> None:
    rewards = torch.tensor([0.1] * 7 + [0.2])
    assert grpo_advantages(rewards, torch.tensor([5] * 7 + [9])).tolist() == [0.0] * 8


def test_grpo_refuses_shapes_that_do_not_match() -> None:
    with pytest.raises(ValueError, match="one length"):
        grpo_advantages(torch.zeros(3), torch.zeros(4, dtype=torch.int64))


ragged = st.lists(st.lists(st.floats(-5, 5, width=32, allow_subnormal=False), max_size=6), min_size=1, max_size=6)


def aggregate(samples: list[list[float]], cut: int, mode: str) -> float:
    """The batch's loss computed in micro batches of `cut` samples."""
    totals = {"batch_samples": len(samples), "batch_tokens": sum(map(len, samples)), "constant_length": 10}
    loss = 0.0
    for start in range(0, len(samples), cut):
        part = samples[start : start + cut]
        sizes = torch.tensor([len(sample) for sample in part])
        sample = torch.repeat_interleave(torch.arange(len(part)), sizes)
        weights = token_weights(sample, mode, sample_tokens=sizes, **totals)  # type: ignore[arg-type]
        loss += float((weights.double() * torch.tensor([v for s in part for v in s], dtype=torch.float64)).sum())
    return loss


@given(ragged, st.integers(1, 6), st.randoms(use_true_random=False))
def test_aggregation_is_the_formula_however_the_batch_is_cut(
    samples: list[list[float]], cut: int, random: object
) -> None:
    count, tokens = len(samples), sum(map(len, samples))
    expected = {
        "per_sample": sum(np.mean(sample) for sample in samples if sample) / count,
        "per_token": sum(map(sum, samples)) / max(tokens, 1),
        "constant": sum(map(sum, samples)) / (10 * count),
    }
    shuffled = list(samples)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    for mode, value in expected.items():
        assert aggregate(samples, cut, mode) == pytest.approx(float(value), rel=1e-5, abs=1e-5)
        assert aggregate(shuffled, 1, mode) == pytest.approx(float(value), rel=1e-5, abs=1e-5)


def test_per_prompt_gives_every_prompt_the_same_weight() -> None:
    sizes = torch.tensor([1, 3, 2])  # the first two samples are of one prompt
    sample = torch.repeat_interleave(torch.arange(3), sizes)
    weights = token_weights(
        sample, "per_prompt", sample_tokens=sizes, batch_samples=3, batch_tokens=6,
        prompt_tokens=torch.tensor([4, 4, 2]), batch_prompts=2,
    )  # fmt: skip
    assert weights[:4].sum().item() == pytest.approx(0.5)
    assert weights[4:].sum().item() == pytest.approx(0.5)
    assert weights[0] == weights[3]


def test_a_sample_without_trained_tokens_counts_in_the_denominator() -> None:
    assert aggregate([[2.0, 4.0], []], 1, "per_sample") == pytest.approx(1.5)


@pytest.mark.parametrize("mode", ["per_prompt", "constant", "nonsense"])
def test_aggregation_says_what_it_lacks(mode: str) -> None:
    with pytest.raises(ValueError, match=mode):
        token_weights(
            torch.zeros(1, dtype=torch.int64), mode, sample_tokens=torch.ones(1), batch_samples=1, batch_tokens=1
        )  # type: ignore[arg-type]
