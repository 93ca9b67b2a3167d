"""GSPO, CISPO, the weighted KL and the value loss against their published forms."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from rljob_trainer.algorithms import (
    cispo_loss,
    clipped_value_loss,
    explained_variance,
    gspo_loss,
    kl_estimate,
    ppo_clip_loss,
)

logprob = st.floats(-4, -0.0078125, width=32, allow_subnormal=False)
batches = st.lists(
    st.tuples(st.floats(-2, 2, width=32), st.lists(st.tuples(logprob, logprob), min_size=1, max_size=5)),
    min_size=1,
    max_size=4,
)


@given(batches)
def test_gspo_has_the_gradient_of_the_sequence_objective(batch: list[tuple[float, list[tuple[float, float]]]]) -> None:
    sizes = torch.tensor([len(tokens) for _, tokens in batch])
    sample = torch.repeat_interleave(torch.arange(len(batch)), sizes)
    flat = [pair for _, tokens in batch for pair in tokens]
    lp = torch.tensor([pair[0] for pair in flat], dtype=torch.float64, requires_grad=True)
    old = torch.tensor([pair[1] for pair in flat], dtype=torch.float64)
    advantages = torch.tensor([advantage for advantage, _ in batch], dtype=torch.float64)[sample]
    loss, _, ratio = gspo_loss(lp, old, advantages, sample, len(batch), eps_clip=0.2, eps_clip_high=0.3)
    (loss / sizes[sample]).sum().backward()
    theirs = lp.detach().clone().requires_grad_()
    objective = torch.zeros((), dtype=torch.float64)
    for number, (advantage, _) in enumerate(batch):
        own = sample == number
        s = torch.exp((theirs[own] - old[own]).mean())
        assert ratio[own].tolist() == pytest.approx([s.item()] * int(own.sum()), rel=1e-9)
        objective = objective - torch.minimum(s * advantage, s.clamp(0.8, 1.3) * advantage)
    objective.backward()
    assert (loss / sizes[sample]).sum().item() == pytest.approx(objective.item(), rel=1e-9, abs=1e-9)
    assert lp.grad is not None
    torch.testing.assert_close(lp.grad, theirs.grad, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(("ratio", "weight"), [(1.0, 1.0), (5.0, 1.28), (0.1, 0.8)])
@pytest.mark.parametrize("advantage", [1.0, -1.0])
def test_cispo_bounds_the_weight_and_keeps_the_gradient(ratio: float, weight: float, advantage: float) -> None:
    lp = torch.tensor([-1.0], dtype=torch.float64, requires_grad=True)
    old = torch.tensor([-1.0 - math.log(ratio)], dtype=torch.float64)
    loss, clipped, got = cispo_loss(lp, old, torch.tensor([advantage]), eps_clip=0.2, eps_clip_high=0.28)
    loss.sum().backward()
    assert lp.grad is not None
    assert lp.grad.item() == pytest.approx(-weight * advantage)
    assert got.item() == pytest.approx(ratio)
    assert bool(clipped) is (weight != ratio)


def test_on_the_first_step_all_losses_have_the_same_gradient() -> None:
    """With the policy as its own old policy the ratio is 1 exactly, and every loss is REINFORCE."""
    start, advantages = torch.randn(6) - 2, torch.randn(3)[torch.tensor([0, 0, 1, 2, 2, 2])]
    sample = torch.tensor([0, 0, 1, 2, 2, 2])
    gradients = []
    for name in ("ppo", "gspo", "cispo"):
        lp = start.clone().requires_grad_()
        if name == "gspo":
            loss, clipped, ratio = gspo_loss(lp, lp.detach(), advantages, sample, 3, eps_clip=0.2)
        else:
            function = ppo_clip_loss if name == "ppo" else cispo_loss
            loss, clipped, ratio = function(lp, lp.detach(), advantages, eps_clip=0.2)
        loss.sum().backward()
        assert ratio.tolist() == [1.0] * 6
        assert not clipped.any()
        assert lp.grad is not None
        gradients.append(lp.grad)
    for gradient in gradients:
        torch.testing.assert_close(gradient, -advantages)


@pytest.mark.parametrize("estimator", ["k1", "k2", "k3", "low_var_kl"])
def test_kl_of_equal_policies_is_zero(estimator: str) -> None:
    lp = torch.randn(5).requires_grad_()
    assert kl_estimate(lp, lp.detach(), estimator).abs().sum().item() == 0.0  # type: ignore[arg-type]


@pytest.mark.parametrize("estimator", ["k1", "k3"])
def test_the_weighted_estimate_has_the_gradient_of_the_kl_off_policy(estimator: str) -> None:
    generator = torch.Generator().manual_seed(3)
    old, ref = (torch.randn(6, generator=generator, dtype=torch.float64).log_softmax(0) for _ in range(2))
    logits = torch.randn(6, generator=generator, dtype=torch.float64, requires_grad=True)
    policy = logits.log_softmax(0)
    exact = (policy.exp() * (policy - ref)).sum()
    (wanted,) = torch.autograd.grad(exact, logits, retain_graph=True)
    # The expectation over tokens of the old policy, written out.
    estimate = (old.exp() * kl_estimate(policy, ref, estimator, torch.exp(policy - old))).sum()  # type: ignore[arg-type]
    (got,) = torch.autograd.grad(estimate, logits, retain_graph=True)
    assert estimate.item() == pytest.approx(exact.item(), rel=1e-12)
    torch.testing.assert_close(got, wanted, rtol=1e-9, atol=1e-12)
    plain = (old.exp() * kl_estimate(policy, ref, estimator)).sum()  # type: ignore[arg-type]
    (biased,) = torch.autograd.grad(plain, logits)
    assert (biased - wanted).abs().max().item() > 1e-3


def test_value_loss() -> None:
    values = torch.tensor([0.0, 1.0, 0.5], requires_grad=True)
    old, returns = torch.tensor([0.0, 0.0, 0.5]), torch.tensor([1.0, 2.0, 0.0])
    loss, clipped = clipped_value_loss(values, old, returns, clip=0.2)
    assert loss.tolist() == pytest.approx([0.5, 0.5 * 1.8**2, 0.125])
    assert clipped.tolist() == [False, True, False]
    loss.sum().backward()
    assert values.grad is not None
    assert values.grad.tolist() == pytest.approx([-1.0, 0.0, 0.5])
    plain, clipped = clipped_value_loss(values, old, returns, clip=None)
    assert plain.tolist() == pytest.approx([0.5, 0.5, 0.125])
    assert not clipped.any()


def test_explained_variance() -> None:
    assert explained_variance(0.0, 3.0, 5.0, 2) == 1.0
    assert explained_variance(0.5, 3.0, 5.0, 2) == pytest.approx(0.0)
    assert explained_variance(0.5, 2.0, 2.0, 2) == 0.0
