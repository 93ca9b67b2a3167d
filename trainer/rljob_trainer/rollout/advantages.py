"""The advantage of every sample, or of every token where the algorithm tells tokens apart."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from rljob.types import Sample, TokenSignals, TrainSample
from rljob_api.v1alpha1.algorithm import AlgorithmSpec

from rljob_trainer.algorithms import estimate_advantages

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


def by_token(spec: AlgorithmSpec) -> bool:
    """Whether advantages need more than the rewards, or differ within a sample."""
    whitened = spec.advantage_estimator in ("reinforce_plus_plus", "reinforce_plus_plus_baseline")
    return whitened or spec.advantage_estimator == "gae" or spec.kl.reward_coef > 0


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


def token_credit(samples: Sequence[Sample], spec: AlgorithmSpec, ask: Ask | None) -> list[Credit]:
    """Credit of each of `samples` (all trainable), normalised over all of them. `ask` is needed by `gae` and by a KL
    in the reward alone."""
    needs_ranks = spec.advantage_estimator == "gae" or spec.kl.reward_coef > 0
    signals = [TokenSignals() for _ in samples]
    if needs_ranks:
        if ask is None:
            raise ValueError(f"{spec.advantage_estimator} needs the ranks' word on the tokens")
        signals = ask([train_sample(sample, Credit(0.0)) for sample in samples])
    # A sequence's first id is never trained: nothing predicts it.
    sizes = [sum(sample.loss_mask) - int(not sample.prompt_ids and bool(sample.loss_mask[0])) for sample in samples]
    kl = [value for signal in signals for value in signal.kl or ()] if spec.kl.reward_coef > 0 else None
    values = [value for signal in signals for value in signal.values or ()]
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
        values=torch.tensor(values, dtype=torch.float64) if spec.advantage_estimator == "gae" else None,
    )
    credits = []
    returns = torch.split(result.returns, sizes) if result.returns is not None else [None] * len(sizes)
    for part, goal, signal in zip(torch.split(result.advantages, sizes), returns, signals, strict=True):
        advantages = part.tolist()
        mean = sum(advantages) / max(len(advantages), 1)
        credits.append(Credit(mean, advantages, signal.values, None if goal is None else goal.tolist()))
    return credits
