"""AdamW over a module's parameters: one step, clipped by the global norm, or none when a number is not finite."""

import math

import torch
from rljob_api.v1alpha1.optimizer import OptimizerSpec
from torch import Tensor, nn

from rljob_trainer.training.errors import NonFiniteError
from rljob_trainer.training.fsdp.shards import full, parameters
from rljob_trainer.training.interface import OptimizerStep
from rljob_trainer.training.lr_schedule import learning_rate


def adamw(module: nn.Module, spec: OptimizerSpec) -> torch.optim.AdamW:
    """AdamW; weight decay on matrices alone, not on norms and biases, as Megatron and slime have it."""
    named = [parameter for _, parameter in parameters(module)]
    groups = [
        {"params": [p for p in named if p.ndim >= 2], "weight_decay": spec.weight_decay},
        {"params": [p for p in named if p.ndim < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(
        [group for group in groups if group["params"]],
        lr=spec.lr, betas=(spec.beta1, spec.beta2), eps=spec.eps, fused=True,
    )  # fmt: skip


def gradient_norm(module: nn.Module, loss: float, what: str, rank: int) -> Tensor:
    """Norm of all gradients of all ranks (collective). Raises NonFiniteError, the gradients dropped, when it or the
    loss is not finite."""
    gradients = [parameter.grad for _, parameter in parameters(module) if parameter.grad is not None]
    norm = full(nn.utils.get_total_norm(gradients))
    value = float(norm)
    if not (math.isfinite(value) and math.isfinite(loss)):
        module.zero_grad(set_to_none=True)
        raise NonFiniteError(what, loss, value, rank)
    return norm


def step_clipped(module: nn.Module, optimizer: torch.optim.AdamW, step: OptimizerStep, norm: Tensor) -> float:
    """Clip by `norm` and apply the gradients. Returns the learning rate."""
    if step.spec.clip_grad > 0:
        with_grad = [parameter for _, parameter in parameters(module) if parameter.grad is not None]
        nn.utils.clip_grads_with_norm_(with_grad, step.spec.clip_grad, norm)
    lr = learning_rate(step.spec, step.number, step.total)
    for group in optimizer.param_groups:
        group["lr"] = lr
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return lr
