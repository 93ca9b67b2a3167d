"""Forward and backward passes over packs, by Megatron's schedules: one after the other, or pipelined (1F1B)."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from megatron.core.pipeline_parallel import get_forward_backward_func
from torch import Tensor

from rljob_trainer.training.megatron.packing import Pack

LossOf = Callable[[int, Pack, Tensor, Tensor], Tensor]
"""(number of the pack, the pack, log-probabilities [N], entropies [N]) → the pack's share of the loss."""


def train(model: Any, packs: Sequence[Pack], temperature: float, loss_of: LossOf) -> None:
    """Run all packs forward and backward and finish the gradients (collective). `loss_of` is called on the last
    pipeline stage alone."""
    device = next(model.parameters()).device
    none = torch.zeros((), dtype=torch.int, device=device)

    def step(source: Iterator[tuple[int, Pack]], module: Any) -> tuple[Any, Any]:
        number, pack = next(source)

        def loss(outputs: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor, None]:
            return loss_of(number, pack, *outputs), none, None

        return module(pack.to(device), temperature), loss

    _run(step, model, packs, forward_only=False)


@torch.no_grad()
def evaluate(model: Any, packs: Sequence[Pack], temperature: float) -> list[Tensor]:
    """Log-probabilities of each pack's trained tokens, [N] float32, on the last pipeline stage; [] elsewhere."""
    device = next(model.parameters()).device
    none = torch.zeros((), dtype=torch.int, device=device)
    found: list[Tensor] = []

    def step(source: Iterator[tuple[int, Pack]], module: Any) -> tuple[Any, Any]:
        _, pack = next(source)

        def keep(outputs: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor, None]:
            found.append(outputs[0])
            return outputs[0].sum(), none, None

        return module(pack.to(device), temperature), keep

    _run(step, model, packs, forward_only=True)
    return found


def _run(step: Any, model: Any, packs: Sequence[Pack], *, forward_only: bool) -> None:
    get_forward_backward_func()(
        forward_step_func=step,
        data_iterator=iter(enumerate(packs)),
        model=[model],
        num_microbatches=len(packs),
        # Not used: stages tell one another the shapes (`variable_seq_lengths`).
        seq_length=1,
        micro_batch_size=1,
        forward_only=forward_only,
    )
