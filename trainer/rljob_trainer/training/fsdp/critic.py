"""The critic of PPO: a value for the state in which each token was drawn."""

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from rljob.types import TrainSample
from torch import Tensor, nn

from rljob_trainer.algorithms import clipped_value_loss, explained_variance
from rljob_trainer.training.fsdp.policy import document_bounds
from rljob_trainer.training.microbatch import MicroBatch, Packing
from rljob_trainer.training.rl_loss import RlLoss, gather
from rljob_trainer.training.step_metrics import StepMetrics

SUMS = ("value_loss", "value_clipfrac", "value_mean", "residual", "returns", "return_squares")


class Critic(nn.Module):
    """A transformers model without its output projection, and a linear head. The head starts at 0: so do all values."""

    def __init__(self, hf: Any) -> None:
        super().__init__()
        self.hf = hf
        self.head = nn.Linear(hf.config.hidden_size, 1, bias=False)
        nn.init.zeros_(self.head.weight)

    def forward(self, input_ids: Tensor, positions: Tensor, packing: Packing | None = None) -> Tensor:
        """Values at `positions` of the flattened ids: what is to come after them. Shapes as `Policy.forward`; returns
        [N] float32."""
        bounds = document_bounds(packing, input_ids.device)
        hidden = self.hf(input_ids=input_ids, use_cache=False, **bounds).last_hidden_state
        chosen = hidden.flatten(0, 1).index_select(0, positions)
        values: Tensor = self.head(chosen).squeeze(-1).float()
        return values


class CriticLoss:
    """The value loss of one optimizer step on one rank, micro batch by micro batch, weighted as the policy's is."""

    def __init__(self, loss: RlLoss, samples: Sequence[TrainSample], clip: float, device: torch.device) -> None:
        self._loss, self._clip, self._device = loss, clip or None, device
        self._values = [_required(sample.values, "values") for sample in samples]
        self._returns = [_required(sample.returns, "returns") for sample in samples]
        self._meters = StepMetrics(SUMS)

    def __call__(self, batch: MicroBatch, values: Tensor) -> Tensor:
        """The micro batch's share of the loss. values: [N], with gradient."""
        weight = self._loss.token_weights(batch)
        old, returns = (gather(each, batch, self._device) for each in (self._values, self._returns))
        token_loss, clipped = clipped_value_loss(values, old, returns, clip=self._clip)
        loss = (weight * token_loss).sum()
        exact = returns.double()
        self._meters.add(
            value_loss=loss.detach(), value_clipfrac=clipped.sum(), value_mean=values.detach().double().sum(),
            residual=(exact - values.detach()).square().sum(), returns=exact.sum(), return_squares=exact.square().sum(),
        )  # fmt: skip
        return loss

    def metrics(self) -> dict[str, float]:
        """Metrics of the step, the same on all ranks (collective)."""
        sums, tokens = self._meters.reduce(), max(self._loss.totals.tokens, 1)
        return {
            "value_loss": sums["value_loss"],
            "value_clipfrac": sums["value_clipfrac"] / tokens,
            "value_mean": sums["value_mean"] / tokens,
            "value_explained_variance": explained_variance(
                sums["residual"], sums["returns"], sums["return_squares"], tokens
            ),
        }


def backward(critic: Critic, loss: CriticLoss, batches: Iterable[MicroBatch]) -> None:
    """Add the gradients of the value loss over all micro batches, which lie on the critic's device."""
    for batch in batches:
        values = critic(batch.input_ids, batch.positions, batch.packing)
        loss(batch, values).backward()  # type: ignore[no-untyped-call]


def _required(values: list[float] | None, name: str) -> list[float]:
    if values is None:
        raise ValueError(f"a sample has no {name}: they come from `token_signals`, before the rollout's first step")
    return values
