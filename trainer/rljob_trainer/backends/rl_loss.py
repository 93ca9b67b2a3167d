"""The loss of a reinforcement-learning step: policy gradient, KL against the reference, entropy bonus, TIS."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from rljob_trainer.algorithms import kl_estimate, normalize_by_mean, ppo_clip_loss, tis_weights, token_weights
from rljob_trainer.backends.meters import Meters
from rljob_trainer.backends.microbatch import MicroBatch, Row
from rljob_trainer.backends.process import all_reduce
from rljob_trainer.config.algorithm import AlgorithmSpec, TisSpec
from rljob_trainer.config.errors import UserError
from rljob_trainer.hooks import load_function
from rljob_trainer.rollout.types import TrainSample

SUMS = (
    "loss", "pg_loss", "kl", "entropy", "clipfrac", "ratio_mean", "logprob_diff_mean", "mismatch_kl",
    "tis_weight_mean", "tis_ratio", "tis_above", "tis_below", "tis_units", "tis_vetoed",
)  # fmt: skip
MAXIMA = ("ratio_max", "logprob_diff_max")


@dataclass(frozen=True)
class Totals:
    """Counts over the global batch: all micro batches of all ranks."""

    samples: int
    tokens: int
    """Trained tokens."""
    response_tokens: int


def to_row(sample: TrainSample) -> Row:
    """Prompt and response as one sequence; observations and prompt are not trained."""
    count = len(sample.response_ids)
    if len(sample.loss_mask) != count or len(sample.rollout_logprobs) not in (0, count):
        raise ValueError(
            f"a sample has {count} response ids, {len(sample.loss_mask)} mask entries and "
            f"{len(sample.rollout_logprobs)} log-probabilities: they must be aligned"
        )
    return Row([*sample.prompt_ids, *sample.response_ids], [0] * len(sample.prompt_ids) + list(sample.loss_mask))


def count(samples: Sequence[TrainSample], rows: Sequence[Row]) -> Totals:
    """Totals over all ranks (collective)."""
    mine = [len(samples), sum(sum(row.mask[1:]) for row in rows), sum(len(s.response_ids) for s in samples)]
    values = all_reduce(torch.tensor(mine, dtype=torch.int64)).tolist()
    return Totals(*values)


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
    ) -> None:
        if spec.loss_aggregation not in ("per_sample", "per_token"):
            raise UserError(
                f"spec.algorithm.lossAggregation: {spec.loss_aggregation!r} is not available with the fsdp backend",
                hint="use per_sample or per_token",
            )
        self.spec, self.totals, self.device = spec, totals, device
        self.meters = Meters(SUMS, MAXIMA)
        self.advantages = torch.tensor([sample.advantage for sample in samples], dtype=torch.float32, device=device)
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
            weights = _custom_weights(self.spec.tis, train, rollout, sample, len(sizes))
            kept = torch.tensor([float(weights.double().sum()), float((weights != 0).sum())], dtype=torch.float64)
        else:
            result = tis_weights(train, rollout, sample, len(sizes), **_options(self.spec.tis))
            weights, kept = result.weights, torch.tensor([result.kept_sum, result.kept], dtype=torch.float64)
            self._add_stats(result.stats)
        if self.spec.tis.batch_normalize:
            total, number = all_reduce(kept).tolist()
            weights = normalize_by_mean(weights, total, number)
        self.weights = [part.tolist() for part in torch.split(weights, sizes)]

    def __call__(self, batch: MicroBatch, logprobs: Tensor, ref: Tensor | None, entropy: Tensor | None) -> Tensor:
        """The micro batch's share of the loss: a scalar; the shares of all micro batches and ranks add up to the loss.

        logprobs: [N] of the policy, with gradient. ref: [N] of the reference. entropy: [N].
        """
        spec, sample = self.spec, batch.sample.to(self.device)
        weight = token_weights(
            sample,
            spec.loss_aggregation,
            sample_tokens=batch.sample_tokens.to(self.device),
            batch_samples=self.totals.samples,
            batch_tokens=self.totals.tokens,
        )
        advantages = self.advantages[torch.tensor(batch.rows, dtype=torch.int64, device=self.device)][sample]
        old = logprobs.detach() if self.old is None else gather(self.old, batch, self.device)
        pg, clipped, ratio = ppo_clip_loss(
            logprobs, old, advantages,
            eps_clip=spec.eps_clip, eps_clip_high=spec.eps_clip_high, dual_clip=spec.dual_clip,
        )  # fmt: skip
        rollout = gather(self.rollout, batch, self.device) if self.rollout is not None else None
        if spec.tis.enabled and rollout is not None:
            if self.weights is not None:
                importance = gather(self.weights, batch, self.device)
            else:
                result = tis_weights(old, rollout, sample, len(batch.rows), **_options(spec.tis))
                importance = result.weights
                self._add_stats(result.stats)
            pg = pg * importance
            self.meters.add(tis_weight_mean=importance.double().sum())
        loss = (weight * pg).sum()
        self.meters.add(pg_loss=loss.detach().double())
        if ref is not None:
            kl = (weight * kl_estimate(logprobs, ref, spec.kl.estimator)).sum()
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
        for name in ("clipfrac", "ratio_mean", "logprob_diff_mean", "mismatch_kl", "tis_weight_mean"):
            values[name] /= tokens
        tis = {"tis_ratio_mean": values.pop("tis_ratio") / units}
        tis["tis_weight_mean"] = values.pop("tis_weight_mean")
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


def _options(spec: TisSpec) -> dict[str, Any]:
    return {
        "level": spec.level,
        "mode": spec.mode,
        "upper_bound": spec.upper_bound,
        "lower_bound": spec.lower_bound,
        "veto_threshold": spec.veto_threshold,
    }


def _custom_weights(spec: TisSpec, train: Tensor, rollout: Tensor, sample: Tensor, num_samples: int) -> Tensor:
    assert spec.function is not None
    field = "spec.algorithm.tis.function"
    function: Callable[..., Any] = load_function(spec.function, field)
    result = function(train, rollout, sample, num_samples, **spec.args)
    weights = result[0] if isinstance(result, tuple) else result
    if not isinstance(weights, Tensor) or weights.shape != train.shape:
        shape = tuple(weights.shape) if isinstance(weights, Tensor) else type(weights).__name__
        raise UserError(
            f"{field}: {spec.function} must return a tensor of shape {tuple(train.shape)}, returned {shape}"
        )
    return weights.detach().to(torch.float32)
