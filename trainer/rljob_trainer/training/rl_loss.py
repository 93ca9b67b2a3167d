"""The loss of a reinforcement-learning step: policy gradient, KL against the reference, entropy bonus, TIS."""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from rljob.algorithms import PolicyLossInputs, PolicyLossOutputs
from rljob.types import TrainSample
from rljob_api.catalogue.losses import LOSSES
from rljob_api.errors import UserError
from rljob_api.v1alpha1.algorithm import AlgorithmSpec, TisSpec
from torch import Tensor

from rljob_trainer.algorithms import (
    kl_estimate,
    loss_terms,
    normalize_by_mean,
    tis_weights,
    token_weights,
)
from rljob_trainer.algorithms.custom import CustomPolicyLoss, CustomWeights
from rljob_trainer.hooks import load_function
from rljob_trainer.training.microbatch import MicroBatch, Row
from rljob_trainer.training.process_group import all_reduce
from rljob_trainer.training.step_metrics import StepMetrics

SUMS = (
    "loss", "pg_loss", "kl", "entropy", "clipfrac", "ratio_mean", "logprob_diff_mean", "mismatch_kl",
    "tis_weight_mean", "tis_weight_squares", "tis_ratio", "tis_above", "tis_below", "tis_units", "tis_vetoed",
)  # fmt: skip
MAXIMA = ("ratio_max", "logprob_diff_max")


@dataclass(frozen=True)
class Totals:
    """Counts over the global batch: all micro batches of all ranks."""

    samples: int
    tokens: int
    """Trained tokens."""
    response_tokens: int
    prompt_tokens: Sequence[int] = ()
    """Trained tokens of each prompt's samples, by `TrainSample.group`."""
    prompts: int = 0
    """Prompts with at least one sample."""


def to_row(sample: TrainSample) -> Row:
    """Prompt and response as one sequence; observations and prompt are not trained."""
    count = len(sample.response_ids)
    if len(sample.loss_mask) != count or len(sample.rollout_logprobs) not in (0, count):
        raise ValueError(
            f"a sample has {count} response ids, {len(sample.loss_mask)} mask entries and "
            f"{len(sample.rollout_logprobs)} log-probabilities: they must be aligned"
        )
    return Row([*sample.prompt_ids, *sample.response_ids], [0] * len(sample.prompt_ids) + list(sample.loss_mask))


def count(samples: Sequence[TrainSample], rows: Sequence[Row], *, by_prompt: bool = False) -> Totals:
    """Totals over all ranks (collective); those of prompts where asked for."""
    tokens = [len(row.trained()) for row in rows]
    mine = [len(samples), sum(tokens), sum(len(s.response_ids) for s in samples)]
    number_of_samples, trained, response = all_reduce(torch.tensor(mine, dtype=torch.int64)).tolist()
    if not by_prompt:
        return Totals(number_of_samples, trained, response)
    groups = torch.tensor([sample.group for sample in samples], dtype=torch.int64)
    number = int(all_reduce(torch.tensor([int(groups.max()) + 1 if len(groups) else 0]), "max"))
    table = torch.zeros(2, number, dtype=torch.int64)
    table[0].index_add_(0, groups, torch.tensor(tokens, dtype=torch.int64))
    table[1].index_add_(0, groups, torch.ones_like(groups))
    table = all_reduce(table)
    prompts = int((table[1] > 0).sum())
    return Totals(number_of_samples, trained, response, prompt_tokens=table[0].tolist(), prompts=prompts)


def of_trained(values: Sequence[float], sample: TrainSample) -> list[float]:
    """Those of `values`, one per response token, that belong to trained tokens (never the sequence's first id)."""
    first = 1 if not sample.prompt_ids else 0
    return [values[at] for at in range(first, len(values)) if sample.loss_mask[at]]


def gather(per_sample: Sequence[list[float]], batch: MicroBatch, device: torch.device) -> Tensor:
    """[N] float32: values of the trained tokens of the batch's rows."""
    flat = [value for row in batch.rows for value in per_sample[row]]
    return torch.tensor(flat, dtype=torch.float32, device=device)


class RlLoss:
    """The loss of one optimizer step on one rank, micro batch by micro batch."""

    def __init__(
        self,
        spec: AlgorithmSpec,
        samples: Sequence[TrainSample],
        totals: Totals,
        old_logprobs: Sequence[Sequence[float]] | None,
        device: torch.device,
        *,
        constant_length: int | None = None,
    ) -> None:
        """`constant_length`: tokens that a sample's sum is divided by, for the aggregation `constant`. For
        `per_prompt`, `totals` must have been counted by prompt."""
        self.spec, self.totals, self.device, self.constant_length = spec, totals, device, constant_length
        self._policy_loss = policy_loss(spec)
        self.prompt_tokens: Tensor | None = None
        if spec.loss_aggregation == "per_prompt":
            by_prompt = torch.tensor(totals.prompt_tokens, dtype=torch.int64)
            self.prompt_tokens = by_prompt[[sample.group for sample in samples]]
        self.meters = StepMetrics(SUMS, MAXIMA)
        self.advantages = torch.tensor([sample.advantage for sample in samples], dtype=torch.float32, device=device)
        self.token_advantages: list[list[float]] | None = None
        if any(sample.advantages is not None for sample in samples):
            self.token_advantages = [_token_advantages(sample) for sample in samples]
        self.rollout: list[list[float]] | None = None
        if all(len(sample.rollout_logprobs) == len(sample.response_ids) for sample in samples):
            self.rollout = [of_trained(sample.rollout_logprobs, sample) for sample in samples]
        elif spec.tis.enabled:
            raise UserError(
                "spec.algorithm.tis.enabled needs the engine's log-probabilities; set spec.rollout.returnLogprobs"
            )
        self.old: list[list[float]] | None = None
        if old_logprobs is not None:
            self.old = [of_trained(old, sample) for old, sample in zip(old_logprobs, samples, strict=True)]
        self.weights: list[list[float]] | None = None

    @property
    def needs_logprobs_first(self) -> bool:
        """Whether TIS weights need the whole batch's log-probabilities before the first micro batch's loss."""
        return self.spec.tis.enabled and (self.spec.tis.batch_normalize or self.spec.tis.function is not None)

    def set_batch_weights(self, logprobs: list[list[float]]) -> None:
        """Compute TIS weights over the whole batch (collective) from the trainer's log-probs, per sample."""
        assert self.rollout is not None
        sizes = [len(values) for values in logprobs]
        train = torch.tensor([value for values in logprobs for value in values], dtype=torch.float32)
        rollout = torch.tensor([value for values in self.rollout for value in values], dtype=torch.float32)
        sample = torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes, dtype=torch.int64))
        if self.spec.tis.function is not None:
            custom = CustomWeights(self.spec.tis.function, self.spec.tis.args)
            weights = custom(train, rollout, sample, len(sizes))
            kept = torch.tensor([float(weights.double().sum()), float((weights != 0).sum())], dtype=torch.float64)
        else:
            result = tis_weights(train, rollout, sample, len(sizes), **_options(self.spec.tis))
            weights, kept = result.weights, torch.tensor([result.kept_sum, result.kept], dtype=torch.float64)
            self._add_stats(result.stats)
        if self.spec.tis.batch_normalize:
            total, number = all_reduce(kept).tolist()
            weights = normalize_by_mean(weights, total, number)
        self.weights = [part.tolist() for part in torch.split(weights, sizes)]

    def token_weights(self, batch: MicroBatch) -> Tensor:
        """[N]: what each token counts in the loss of the global batch."""
        prompt_tokens = None if self.prompt_tokens is None else self.prompt_tokens[batch.rows].to(self.device)
        if prompt_tokens is not None and not batch.rows:
            prompt_tokens = torch.zeros(1, device=self.device)  # the pass of a rank without rows
        return token_weights(
            batch.sample.to(self.device),
            self.spec.loss_aggregation,
            sample_tokens=batch.sample_tokens.to(self.device),
            batch_samples=self.totals.samples,
            batch_tokens=self.totals.tokens,
            prompt_tokens=prompt_tokens,
            batch_prompts=self.totals.prompts,
            constant_length=self.constant_length,
        )

    def _advantages(self, batch: MicroBatch, sample: Tensor) -> Tensor:
        if self.token_advantages is not None:
            return gather(self.token_advantages, batch, self.device)
        return self.advantages[torch.tensor(batch.rows, dtype=torch.int64, device=self.device)][sample]

    def __call__(self, batch: MicroBatch, logprobs: Tensor, ref: Tensor | None, entropy: Tensor | None) -> Tensor:
        """The micro batch's share of the loss: a scalar; the shares of all micro batches and ranks add up to the loss.

        logprobs: [N] of the policy, with gradient. ref: [N] of the reference. entropy: [N].
        """
        spec, sample = self.spec, batch.sample.to(self.device)
        weight, advantages = self.token_weights(batch), self._advantages(batch, sample)
        old = logprobs.detach() if self.old is None else gather(self.old, batch, self.device)
        rollout = gather(self.rollout, batch, self.device) if self.rollout is not None else None
        inputs = PolicyLossInputs(logprobs, old, advantages, sample, max(len(batch.rows), 1), rollout)
        pg, clipped, ratio = loss_terms(inputs, self._policy_loss(inputs))
        if spec.tis.enabled and rollout is not None:
            if self.weights is not None:
                importance = gather(self.weights, batch, self.device)
            else:
                result = tis_weights(old, rollout, sample, len(batch.rows), **_options(spec.tis))
                importance = result.weights
                self._add_stats(result.stats)
            pg = pg * importance
            exact = importance.double()
            self.meters.add(tis_weight_mean=exact.sum(), tis_weight_squares=exact.square().sum())
        loss = (weight * pg).sum()
        self.meters.add(pg_loss=loss.detach().double())
        if ref is not None:
            off_policy = torch.exp(logprobs - old) if spec.kl.unbiased else None
            kl = (weight * kl_estimate(logprobs, ref, spec.kl.estimator, off_policy)).sum()
            self.meters.add(kl=kl.detach().double())
            if spec.kl.loss_coef:
                loss = loss + spec.kl.loss_coef * kl
        if entropy is not None:
            bonus = (weight * entropy).sum()
            self.meters.add(entropy=bonus.detach().double())
            if spec.entropy_coef:
                loss = loss - spec.entropy_coef * bonus
        self._observe(loss, clipped, ratio, logprobs.detach(), old, rollout)
        return loss

    def _observe(
        self, loss: Tensor, clipped: Tensor, ratio: Tensor, logprobs: Tensor, old: Tensor, rollout: Tensor | None
    ) -> None:
        self.meters.add(loss=loss.detach().double(), clipfrac=clipped.sum(), ratio_mean=ratio.double().sum())
        self.meters.peak("ratio_max", ratio)
        if rollout is not None:
            difference = old - rollout
            self.meters.add(
                logprob_diff_mean=difference.abs().double().sum(),
                mismatch_kl=kl_estimate(rollout, old, "k3").double().sum(),
            )
            self.meters.peak("logprob_diff_max", difference.abs())

    def _add_stats(self, stats: dict[str, float]) -> None:
        self.meters.add(
            tis_ratio=stats["ratio"], tis_above=stats["above"], tis_below=stats["below"], tis_units=stats["units"],
            tis_vetoed=stats["vetoed"],
        )  # fmt: skip

    def metrics(self) -> dict[str, float]:
        """Metrics of the step, the same on all ranks (collective)."""
        values, totals = self.meters.reduce(), self.totals
        tokens, units = max(totals.tokens, 1), max(values.pop("tis_units"), 1.0)
        squares = values.pop("tis_weight_squares")
        effective = values["tis_weight_mean"] ** 2 / (tokens * squares) if squares else 0.0
        for name in ("clipfrac", "ratio_mean", "logprob_diff_mean", "mismatch_kl", "tis_weight_mean"):
            values[name] /= tokens
        tis = {"tis_ratio_mean": values.pop("tis_ratio") / units}
        tis["tis_weight_mean"] = values.pop("tis_weight_mean")
        tis["tis_effective_samples"] = effective  # (Σw)² / (n·Σw²): 1 when all weights are equal
        tis["tis_above_fraction"] = values.pop("tis_above") / units
        tis["tis_below_fraction"] = values.pop("tis_below") / units
        tis["tis_veto_fraction"] = values.pop("tis_vetoed") / max(totals.samples, 1)
        if self.spec.tis.enabled:
            values |= tis
        return values | {
            "samples": float(totals.samples),
            "tokens": float(totals.tokens),
            "response_length": totals.response_tokens / max(totals.samples, 1),
        }


def policy_loss(spec: AlgorithmSpec) -> Callable[[PolicyLossInputs], PolicyLossOutputs]:
    """The job's policy loss: the user's own, or the catalogue's with its settings."""
    if spec.custom_policy_loss is not None:
        return CustomPolicyLoss(spec.custom_policy_loss)
    entry = LOSSES[spec.policy_loss]
    settings = {"eps_clip": spec.eps_clip, "eps_clip_high": spec.eps_clip_high, "dual_clip": spec.dual_clip}
    function = load_function(entry.function, "spec.algorithm.policyLoss")
    return functools.partial(function, **{name: settings[name] for name in entry.settings})


def _token_advantages(sample: TrainSample) -> list[float]:
    tokens = len(of_trained(sample.loss_mask, sample))
    values = [sample.advantage] * tokens if sample.advantages is None else sample.advantages
    if len(values) != tokens:
        raise ValueError(f"a sample has {tokens} trained tokens and {len(values)} advantages: they must be aligned")
    return values


def _options(spec: TisSpec) -> dict[str, Any]:
    return {
        "level": spec.level,
        "mode": spec.mode,
        "upper_bound": spec.upper_bound,
        "lower_bound": spec.lower_bound,
        "veto_threshold": spec.veto_threshold,
    }
