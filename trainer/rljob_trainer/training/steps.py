"""One training step, whatever the backend: loss over the global batch, gradients, optimizer.

Normalisers are totals over all ranks, so that the loss and the gradient are those of the whole batch however it is
shared out.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Protocol

import torch
from rljob.types import TokenSignals, TrainSample
from rljob_api.v1alpha1.job import RLJobSpec
from torch import Tensor

from rljob_trainer.training.interface import Backend, OptimizerStep
from rljob_trainer.training.microbatch import MicroBatch, Row
from rljob_trainer.training.process_group import all_reduce
from rljob_trainer.training.rl_loss import RlLoss, count, to_row
from rljob_trainer.training.step_metrics import StepMetrics


class Demonstration(Protocol):
    """A row of demonstrations; with `lengths` it holds several documents, one after another."""

    @property
    def input_ids(self) -> Sequence[int]: ...

    @property
    def loss_mask(self) -> Sequence[int]: ...

    @property
    def lengths(self) -> Sequence[int] | None: ...


class SftLoss:
    """Mean cross entropy over the trained tokens of the global batch."""

    def __init__(self, tokens: int) -> None:
        self._tokens, self._sums = tokens, StepMetrics(("loss",))

    def __call__(self, batch: MicroBatch, logprobs: Tensor, ref: Tensor | None, entropy: Tensor | None) -> Tensor:
        """See `StepLoss`."""
        loss = -logprobs.sum() / self._tokens
        self._sums.add(loss=loss.detach().double())
        return loss

    def metrics(self) -> dict[str, float]:
        """The loss (collective)."""
        return self._sums.reduce()


def sampling_temperature(spec: RLJobSpec) -> float:
    """The engine reports log softmax(logits / T): the trainer speaks of the same distribution (greedy counts as 1)."""
    return spec.rollout.sampling.temperature or 1.0


def sft_step(
    backend: Backend, spec: RLJobSpec, rows: Sequence[Demonstration], number: int, total: int
) -> dict[str, float]:
    """One optimizer step on this rank's share of the demonstrations, step `number` of `total`.

    Metrics, those of the global batch: loss, grad_norm, lr, tokens, rows. Raises NonFiniteError, weights untouched.
    """
    if backend.stage != "sft" or spec.sft is None:
        raise RuntimeError("sft_step: not in the stage of supervised fine-tuning")
    data = [Row(row.input_ids, row.loss_mask, row.lengths) for row in rows]
    totals = all_reduce(torch.tensor([sum(len(row.trained()) for row in data), len(data)]))
    tokens = int(totals[0])
    if tokens == 0:
        raise ValueError("sft_step: no trained token in the whole batch")
    loss = backend.forward_backward(data, SftLoss(tokens), temperature=1.0, entropy="none")["loss"]
    norm, lr = backend.apply(OptimizerStep(f"SFT step {number}", number, total, spec.sft.optimizer), loss)
    return {"loss": loss, "grad_norm": norm, "lr": lr, "tokens": float(tokens), "rows": float(totals[1])}


def rl_step(
    backend: Backend,
    spec: RLJobSpec,
    samples: Sequence[TrainSample],
    number: int,
    total: int,
    old_logprobs: Sequence[Sequence[float]] | None,
) -> dict[str, float]:
    """One optimizer step on this rank's share of the batch. Metrics are those of the global batch.

    `old_logprobs` come from `compute_logprobs` at the start of the rollout. Without them the policy is its own old
    policy (one step per rollout): the ratio is 1 exactly. Raises NonFiniteError, weights untouched.
    """
    if backend.stage != "rl":
        raise RuntimeError("rl_step before begin_rl")
    algorithm = spec.algorithm
    rows = [to_row(sample) for sample in samples]
    totals = count(samples, rows, by_prompt=algorithm.loss_aggregation == "per_prompt")
    if totals.samples == 0:
        raise ValueError("rl_step: the batch is empty")
    constant = spec.rollout.sampling.max_response_length
    loss = RlLoss(algorithm, samples, totals, old_logprobs, backend.device, constant_length=constant)
    step = OptimizerStep(f"RL step {number}", number, total, spec.optimizer)
    finish_critic = backend.critic_step(
        loss, samples, rows, replace(step, name=f"{step.name}, critic", spec=algorithm.critic.optimizer)
    )
    temperature = sampling_temperature(spec)
    if loss.needs_logprobs_first:
        old = loss.old if loss.old is not None else backend.logprobs(rows, temperature=temperature)
        loss.set_batch_weights(old)
    metrics = backend.forward_backward(
        rows, loss, temperature=temperature, entropy="gradient" if algorithm.entropy_coef else "value"
    )
    norm, lr = backend.apply(step, metrics["loss"])
    return metrics | {"grad_norm": norm, "lr": lr} | finish_critic()


def compute_logprobs(backend: Backend, spec: RLJobSpec, samples: Sequence[TrainSample]) -> list[list[float]]:
    """Log-probabilities of the response tokens under the weights as they are, 0 where not trained.

    Wanted once per rollout, before its first step, when it has several steps (`old_logprobs` of `rl_step`).
    """
    trained = backend.logprobs([to_row(sample) for sample in samples], temperature=sampling_temperature(spec))
    result = []
    for sample, values in zip(samples, trained, strict=True):
        left, first = iter(values), 1 if not sample.prompt_ids else 0
        result.append([next(left) if mask and at >= first else 0.0 for at, mask in enumerate(sample.loss_mask)])
    return result


def token_signals(backend: Backend, spec: RLJobSpec, samples: Sequence[TrainSample]) -> list[TokenSignals]:
    """What advantages are made of beside rewards, under the weights as they are. Wanted once per rollout, before its
    first step."""
    if backend.stage != "rl":
        raise RuntimeError("token_signals before begin_rl")
    return backend.token_signals([to_row(sample) for sample in samples], temperature=sampling_temperature(spec))
