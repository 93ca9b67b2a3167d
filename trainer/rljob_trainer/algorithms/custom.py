"""The user's own advantage estimator, policy loss and importance weights, held to what they promise."""

from collections.abc import Mapping
from typing import Any

import torch
from rljob.algorithms import AdvantageInputs, Advantages, PolicyLossInputs, PolicyLossOutputs
from rljob_api.v1alpha1.algorithm import AlgorithmSpec, CustomFunction
from torch import Tensor

from rljob_trainer.hooks import Hook, load_hook

ADVANTAGES_FIELD = "spec.algorithm.customAdvantages.function"
LOSS_FIELD = "spec.algorithm.customPolicyLoss.function"
WEIGHTS_FIELD = "spec.algorithm.tis.function"


def check_algorithm_hooks(spec: AlgorithmSpec) -> None:
    """Raises UserError for a function of `spec.algorithm` that is not there, or cannot be called as it will be."""
    if spec.custom_advantages is not None:
        CustomAdvantages(spec.custom_advantages, with_returns=False)
    if spec.custom_policy_loss is not None:
        CustomPolicyLoss(spec.custom_policy_loss)
    if spec.tis.function is not None:
        CustomWeights(spec.tis.function, spec.tis.args)


class CustomAdvantages:
    """`spec.algorithm.customAdvantages`. Raises UserError, at construction, for a function that is not there or cannot
    be called that way, and for what it raises and returns."""

    def __init__(self, spec: CustomFunction, *, with_returns: bool) -> None:
        """`with_returns`: there is a critic, which has to be told what to learn."""
        self._hook = load_hook(spec.function, ADVANTAGES_FIELD, spec.args, "def f(inputs, **args)", 1)
        self._with_returns = with_returns

    def __call__(self, inputs: AdvantageInputs) -> Advantages:
        """[S] or [N] float32 on CPU, and returns where there is a critic."""
        given = self._hook.call(inputs)
        result = given if isinstance(given, Advantages) else Advantages(given)
        samples, tokens = tuple(inputs.rewards.shape), tuple(inputs.token_rewards.shape)
        advantages = self._checked("advantages", result.advantages, samples, tokens)
        if result.returns is None and self._with_returns:
            raise self._hook.wrong("must return Advantages(advantages, returns): there is a critic")
        if result.returns is None:
            return Advantages(advantages)
        if not self._with_returns:
            raise self._hook.wrong("returned returns, but there is no critic: only advantageEstimator gae has one")
        return Advantages(advantages, self._checked("returns", result.returns, tokens))

    def _checked(self, name: str, value: Any, *shapes: tuple[int, ...]) -> Tensor:
        result = _real(self._hook, name, value, *shapes).detach().to("cpu", torch.float32)
        _check_finite(self._hook, name, result)
        return result


class CustomPolicyLoss:
    """`spec.algorithm.customPolicyLoss`. Raises as `CustomAdvantages` does."""

    def __init__(self, spec: CustomFunction) -> None:
        self._hook = load_hook(spec.function, LOSS_FIELD, spec.args, "def f(inputs, **args)", 1)

    def __call__(self, inputs: PolicyLossInputs) -> PolicyLossOutputs:
        """What the function returns, [N] each. A micro batch without tokens is not handed to it."""
        logprobs = inputs.logprobs
        if not len(logprobs):
            return PolicyLossOutputs(logprobs * 0.0)
        returned = self._hook.call(inputs)
        result = returned if isinstance(returned, PolicyLossOutputs) else PolicyLossOutputs(returned)
        shape = tuple(logprobs.shape)
        loss = _real(self._hook, "loss", result.loss, shape)
        if logprobs.requires_grad and not loss.requires_grad:
            raise self._hook.wrong("returned a loss without gradient: it must be computed from inputs.logprobs")
        if loss.device != logprobs.device:
            raise self._hook.wrong(f"returned a loss on {loss.device}, not on {logprobs.device}")
        given = (logprobs, inputs.old_logprobs, inputs.advantages)
        # What is not finite already fails the step, as it does with a built-in loss.
        if all(bool(torch.isfinite(tensor).all()) for tensor in given):
            _check_finite(self._hook, "loss", loss)
        clipped, ratio = result.clipped, result.ratio
        if clipped is not None:
            if not isinstance(clipped, Tensor) or clipped.shape != loss.shape or clipped.dtype != torch.bool:
                said = f"must return clipped as a tensor of bools of shape {shape}, returned {_shown(clipped)}"
                raise self._hook.wrong(said)
            clipped = clipped.to(loss.device)
        if ratio is not None:
            ratio = _real(self._hook, "ratio", ratio, shape).detach().to(loss.device)
        return PolicyLossOutputs(loss, clipped, ratio)


class CustomWeights:
    """`spec.algorithm.tis.function`, in place of `tis.tis_weights`. Raises as `CustomAdvantages` does."""

    def __init__(self, function: str, args: Mapping[str, Any]) -> None:
        signature = "def f(train_logprobs, rollout_logprobs, sample, num_samples, **args)"
        self._hook = load_hook(function, WEIGHTS_FIELD, args, signature, 4)

    def __call__(self, train: Tensor, rollout: Tensor, sample: Tensor, num_samples: int) -> Tensor:
        """Weights of the trained tokens, [N] float32, from log-probabilities of trainer and engine, [N] each."""
        result = self._hook.call(train, rollout, sample, num_samples)
        weights = result[0] if isinstance(result, tuple) and result else result
        if not isinstance(weights, Tensor) or weights.shape != train.shape:
            shape = tuple(weights.shape) if isinstance(weights, Tensor) else type(weights).__name__
            raise self._hook.wrong(f"must return a tensor of shape {tuple(train.shape)}, returned {shape}")
        weights = weights.detach().to(train.device, torch.float32)
        if all(bool(torch.isfinite(tensor).all()) for tensor in (train, rollout)):
            _check_finite(self._hook, "weights", weights)
        return weights


def _real(hook: Hook, name: str, value: Any, *shapes: tuple[int, ...]) -> Tensor:
    """The value, a tensor of floats of one of the shapes."""
    if not isinstance(value, Tensor) or tuple(value.shape) not in shapes or not value.is_floating_point():
        wanted = " or ".join(str(shape) for shape in dict.fromkeys(shapes))
        raise hook.wrong(f"must return {name} as a tensor of floats of shape {wanted}, returned {_shown(value)}")
    return value


def _check_finite(hook: Hook, name: str, value: Tensor) -> None:
    value = value.detach()
    wrong = (~torch.isfinite(value)).nonzero()
    if len(wrong):
        first = int(wrong[0])
        shown = f"{float(value[first])} at {first}"
        raise hook.wrong(f"returned {name} with {len(wrong)} of {len(value)} values not finite: {shown}")


def _shown(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"{str(value.dtype).removeprefix('torch.')} of shape {tuple(value.shape)}"
    return type(value).__name__
