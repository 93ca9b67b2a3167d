"""A user's advantage estimator and policy loss: what they are given, and what is said of one that breaks its word."""

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from rljob.algorithms import AdvantageInputs, PolicyLossInputs
from rljob_api.errors import UserError
from rljob_api.v1alpha1.algorithm import AlgorithmSpec, CustomFunction
from rljob_trainer.algorithms import loss_terms
from rljob_trainer.algorithms.custom import CustomAdvantages, CustomPolicyLoss, CustomWeights, check_algorithm_hooks

MINE = """import torch
from rljob import Advantages, PolicyLossOutputs


def plain(inputs, *, scale=1.0):
    return inputs.rewards * scale

def by_token(inputs):
    return Advantages(inputs.token_rewards)

def with_critic(inputs):
    return Advantages(inputs.token_rewards - inputs.values, inputs.token_rewards)

def one(inputs):
    return 1.0

def too_long(inputs):
    return torch.zeros(99)

def whole_numbers(inputs):
    return torch.zeros(len(inputs.rewards), dtype=torch.int64)

def infinite(inputs):
    return inputs.rewards / torch.tensor([1.0, 0.0, 1.0])

def raises(inputs):
    return {}["temperature"]

def surrogate(inputs, *, beta=1.0):
    ratio = torch.exp(inputs.logprobs - inputs.old_logprobs)
    return PolicyLossOutputs(-beta * ratio * inputs.advantages, clipped=ratio > 2, ratio=ratio)

def no_gradient(inputs):
    return -inputs.logprobs.detach() * inputs.advantages

def mean(inputs):
    return (-inputs.logprobs * inputs.advantages).mean()

def not_a_mask(inputs):
    return PolicyLossOutputs(-inputs.logprobs, clipped=inputs.logprobs)

def overflows(inputs):
    return -inputs.logprobs * torch.exp(torch.tensor(1000.0))

def weights_infinite(train, rollout, sample, num_samples):
    return torch.exp(-1000 * train)

def weights_none(train, rollout, sample, num_samples):
    torch.exp(train - rollout)

def weights_nothing(train, rollout, sample, num_samples):
    return ()

def loss_alone(inputs):
    return -inputs.logprobs * inputs.advantages

async def later(inputs):
    return inputs.rewards
"""
SAMPLES = AdvantageInputs(
    rewards=torch.tensor([1.0, 0.5, 0.0], dtype=torch.float64),
    groups=torch.tensor([0, 0, 1]),
    sizes=torch.tensor([2, 1, 2]),
    token_rewards=torch.tensor([0.0, 1.0, 0.5, 0.0, 0.0], dtype=torch.float64),
)


@pytest.fixture(autouse=True)
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_algorithms.py").write_text(MINE)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "my_algorithms", raising=False)


def custom(name: str, **args: Any) -> CustomFunction:
    return CustomFunction(function=f"my_algorithms:{name}", args=args)


def tokens(logprob: float = -1.0) -> PolicyLossInputs:
    logprobs = torch.full((4,), logprob, requires_grad=True)
    return PolicyLossInputs(logprobs, torch.full((4,), -1.5), torch.ones(4), torch.tensor([0, 0, 1, 1]), 2)


def test_advantages_are_per_sample_or_per_token() -> None:
    given = CustomAdvantages(custom("plain", scale=2.0), with_returns=False)(SAMPLES)
    assert given.advantages.tolist() == [2.0, 1.0, 0.0]
    assert given.advantages.dtype == torch.float32
    given = CustomAdvantages(custom("by_token"), with_returns=False)(SAMPLES)
    assert given.advantages.tolist() == SAMPLES.token_rewards.tolist()


def test_with_a_critic_returns_are_given() -> None:
    inputs = AdvantageInputs(SAMPLES.rewards, SAMPLES.groups, SAMPLES.sizes, SAMPLES.token_rewards, torch.ones(5))
    given = CustomAdvantages(custom("with_critic"), with_returns=True)(inputs)
    assert given.returns.tolist() == SAMPLES.token_rewards.tolist()
    assert given.advantages.tolist() == (SAMPLES.token_rewards - 1).tolist()
    with pytest.raises(UserError, match=r"must return Advantages\(advantages, returns\): there is a critic"):
        CustomAdvantages(custom("plain"), with_returns=True)(inputs)
    with pytest.raises(UserError, match="there is no critic"):
        CustomAdvantages(custom("with_critic"), with_returns=False)(inputs)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("one", r"must return advantages as a tensor of floats of shape \(3,\) or \(5,\), returned float"),
        ("too_long", r"returned float32 of shape \(99,\)"),
        ("whole_numbers", r"returned int64 of shape \(3,\)"),
        ("infinite", r"returned advantages with 1 of 3 values not finite: inf at 1"),
        ("raises", r"raised KeyError: 'temperature' \(my_algorithms.py:27\)"),
    ],
)
def test_advantages_that_break_their_word_are_named(name: str, said: str) -> None:
    with pytest.raises(UserError, match=said) as caught:
        CustomAdvantages(custom(name), with_returns=False)(SAMPLES)
    assert f"spec.algorithm.customAdvantages.function: my_algorithms:{name} " in caught.value.message
    assert "(my_algorithms.py:" in caught.value.message


def test_a_loss_keeps_its_gradient_and_gets_what_it_leaves_out() -> None:
    inputs = tokens()
    given = CustomPolicyLoss(custom("surrogate", beta=0.5))(inputs)
    given.loss.sum().backward()
    torch.testing.assert_close(inputs.logprobs.grad, torch.full((4,), -0.5 * 2.718281828**0.5))
    assert not given.ratio.requires_grad
    assert given.clipped.tolist() == [False] * 4
    _, clipped, ratio = loss_terms(tokens(), CustomPolicyLoss(custom("loss_alone"))(tokens()))
    assert ratio.tolist() == given.ratio.tolist()
    assert clipped.tolist() == [False] * 4


def test_a_micro_batch_without_tokens_is_not_handed_to_the_function() -> None:
    empty = torch.zeros(0, requires_grad=True)
    inputs = PolicyLossInputs(empty, torch.zeros(0), torch.zeros(0), torch.zeros(0, dtype=torch.int64), 1)
    loss, clipped, ratio = loss_terms(inputs, CustomPolicyLoss(custom("raises"))(inputs))
    loss.sum().backward()
    assert clipped.shape == ratio.shape == (0,)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("one", r"must return loss as a tensor of floats of shape \(4,\), returned float"),
        ("mean", r"returned float32 of shape \(\)"),
        ("no_gradient", "returned a loss without gradient: it must be computed from inputs.logprobs"),
        ("not_a_mask", r"must return clipped as a tensor of bools of shape \(4,\), returned float32 of shape \(4,\)"),
        ("overflows", "returned loss with 4 of 4 values not finite: inf at 0"),
        ("raises", r"raised KeyError: 'temperature' \(my_algorithms.py:27\)"),
    ],
)
def test_a_loss_that_breaks_its_word_is_named(name: str, said: str) -> None:
    with pytest.raises(UserError, match=said) as caught:
        CustomPolicyLoss(custom(name))(tokens())
    assert f"spec.algorithm.customPolicyLoss.function: my_algorithms:{name} " in caught.value.message


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("weights_infinite", "returned weights with 2 of 3 values not finite: inf at 1"),
        ("weights_none", r"must return a tensor of shape \(3,\), returned NoneType"),
        ("weights_nothing", r"must return a tensor of shape \(3,\), returned tuple"),
    ],
)
def test_weights_that_break_their_word_are_named(name: str, said: str) -> None:
    train, rollout, sample = torch.tensor([0.0, -1.0, -2.0]), torch.zeros(3), torch.tensor([0, 0, 1])
    with pytest.raises(UserError, match=said) as caught:
        CustomWeights(f"my_algorithms:{name}", {})(train, rollout, sample, 2)
    assert caught.value.message.startswith("spec.algorithm.tis.function: ")


def test_what_is_not_finite_already_is_no_fault_of_the_loss() -> None:
    assert CustomPolicyLoss(custom("surrogate"))(tokens(float("nan"))).loss.isnan().all()


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ({"customPolicyLoss": {"function": "my_algorithms:nothing"}}, r"customPolicyLoss.function: .*has no 'nothing'"),
        ({"customAdvantages": {"function": "no_such_module:f"}}, "customAdvantages.function: there is no module"),
        ({"customAdvantages": {"function": "my_algorithms:MINE"}}, "has no 'MINE'"),
        (
            {"customAdvantages": {"function": "my_algorithms:plain", "args": {"scal": 2}}},
            r"my_algorithms:plain\(inputs, \*, scale=1.0\) cannot be called with 1 positional argument, scal=…: "
            "got an unexpected keyword argument 'scal'",
        ),
        ({"customAdvantages": {"function": "my_algorithms:later"}}, "my_algorithms:later is a coroutine function"),
        ({"tis": {"function": "my_algorithms:plain"}}, "tis.function: .*cannot be called with 4 positional arguments"),
    ],
)
def test_a_function_that_cannot_be_called_is_refused_before_anything_starts(spec: Any, said: str) -> None:
    with pytest.raises(UserError, match=said):
        check_algorithm_hooks(AlgorithmSpec.model_validate(spec))
