"""The advantage of every sample, or of every token where the algorithm tells tokens apart."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from rljob.types import Sample, TokenSignals, TrainSample
from rljob_api.catalogue.estimators import ESTIMATORS
from rljob_api.v1alpha1.algorithm import AlgorithmSpec

from rljob_trainer.algorithms import estimate_advantages
from rljob_trainer.algorithms.custom import CustomAdvantages

Ask = Callable[[Sequence[TrainSample]], list[TokenSignals]]
"""Asks the ranks for the critic's values and the KL of samples' tokens."""


@dataclass(frozen=True, slots=True)
class Credit:
    """What a sample is trained with."""

    advantage: float
    """Of the sample; the mean over its tokens where they differ."""
    advantages: list[float] | None = None
    """Of each trained token, where they differ."""
    values: list[float] | None = None
    returns: list[float] | None = None


def train_sample(sample: Sample, credit: Credit) -> TrainSample:
    """What the ranks need of a sample."""
    return TrainSample(
        prompt_ids=sample.prompt_ids,
        response_ids=sample.response_ids,
        loss_mask=sample.loss_mask,
        rollout_logprobs=sample.logprobs,
        advantage=credit.advantage,
        policy_versions=sample.policy_versions,
        group=sample.group,
        advantages=credit.advantages,
        values=credit.values,
        returns=credit.returns,
    )


def credit_of(samples: Sequence[Sample], spec: AlgorithmSpec, ask: Ask | None) -> list[Credit]:
    """Credit of each of `samples` (all trainable), estimated over all of them. `ask` is needed by estimators with a
    critic and by a KL in the reward alone."""
    needs_values, penalised = ESTIMATORS[spec.advantage_estimator].needs_values, spec.kl.reward_coef > 0
    signals = [TokenSignals() for _ in samples]
    if needs_values or penalised:
        if ask is None:
            raise ValueError(f"{spec.advantage_estimator} needs the ranks' word on the tokens")
        signals = ask([train_sample(sample, Credit(0.0)) for sample in samples])
    # A sequence's first id is never trained: nothing predicts it.
    sizes = [sum(sample.loss_mask) - int(not sample.prompt_ids and bool(sample.loss_mask[0])) for sample in samples]
    kl = [value for signal in signals for value in signal.kl or ()] if penalised else None
    values = [value for signal in signals for value in signal.values or ()]
    custom = spec.custom_advantages
    result = estimate_advantages(
        spec.advantage_estimator,
        torch.tensor([sample.reward for sample in samples], dtype=torch.float64),
        torch.tensor([sample.group for sample in samples]),
        torch.tensor(sizes),
        normalize_by_std=spec.normalize_by_std,
        gamma=spec.gamma,
        lam=spec.gae_lambda,
        kl=None if kl is None else torch.tensor(kl, dtype=torch.float64),
        kl_coef=spec.kl.reward_coef,
        values=torch.tensor(values, dtype=torch.float64) if needs_values else None,
        custom=None if custom is None else CustomAdvantages(custom, with_returns=needs_values),
    )
    if result.of_samples is not None and result.returns is None and not penalised:
        return [Credit(value) for value in result.of_samples.tolist()]
    credits = []
    returns = torch.split(result.returns, sizes) if result.returns is not None else [None] * len(sizes)
    for part, goal, signal in zip(torch.split(result.advantages, sizes), returns, signals, strict=True):
        advantages = part.tolist()
        mean = sum(advantages) / max(len(advantages), 1)
        credits.append(Credit(mean, advantages, signal.values, None if goal is None else goal.tolist()))
    return credits
