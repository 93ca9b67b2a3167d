"""Megatron's distributed optimizer: AdamW whose float32 weights and moments are shared out over data-parallel ranks."""

import math
from collections.abc import Iterator
from typing import Any

import torch
from megatron.core.distributed import (
    DistributedDataParallel,
    DistributedDataParallelConfig,
    finalize_model_grads,
)
from megatron.core.optimizer import OptimizerConfig, get_megatron_optimizer
from rljob_api.v1alpha1.optimizer import OptimizerSpec

from rljob_trainer.training.megatron.model import PolicyModel
from rljob_trainer.training.megatron.state import MasterWeight


def wrap(model: PolicyModel, *, overlap: bool) -> Any:
    """The model with buffers for its gradients: float32, summed over data-parallel ranks. overlap: reduce while the
    backward pass still runs (worth it with several data-parallel ranks)."""
    config = DistributedDataParallelConfig(
        grad_reduce_in_fp32=True, overlap_grad_reduce=overlap, use_distributed_optimizer=True
    )
    wrapped = DistributedDataParallel(model.config, config, model)
    if overlap:
        model.config.no_sync_func = wrapped.no_sync

    def finalize(models: list[Any], _tokens: Any = None, **options: Any) -> None:
        # Without a count of tokens nothing is divided: losses are normalised already.
        finalize_model_grads(models, None, **options)

    model.config.finalize_model_grads_func = finalize
    return wrapped


class Optimizer:
    """Steps a wrapped model."""

    def __init__(self, spec: OptimizerSpec, model: Any, dtype: torch.dtype) -> None:
        self.spec = spec
        config = OptimizerConfig(
            optimizer="adam",
            lr=spec.lr,
            weight_decay=spec.weight_decay,
            adam_beta1=spec.beta1,
            adam_beta2=spec.beta2,
            adam_eps=spec.eps,
            clip_grad=spec.clip_grad,
            bf16=dtype == torch.bfloat16,
            params_dtype=dtype,
            use_distributed_optimizer=True,
        )
        self.inner = get_megatron_optimizer(config, [model])
        for group in self.inner.param_groups:
            # Megatron's own scheduler would do this: norms and biases have a factor of 0.
            group["weight_decay"] = spec.weight_decay * group.get("wd_mult", 1.0)

    def grad_norm(self) -> float:
        """The global norm of the gradients (collective)."""
        self.inner.prepare_grads()
        return float(self.inner.get_grad_norm())

    def step(self, lr: float) -> None:
        """Clip, step, and share out the new weights (collective)."""
        for group in self.inner.param_groups:
            group["lr"] = lr
        self.inner.step()

    def master_weights(self) -> Iterator[MasterWeight]:
        """This rank's float32 weights, each with its optimizer state."""
        for number, part in enumerate(self._parts()):
            counts = isinstance(part.optimizer, torch.optim.AdamW)
            for group_number, group in enumerate(part.optimizer.param_groups):
                for place, weight in enumerate(group["params"]):
                    state = part.optimizer.state[weight]
                    yield MasterWeight(f"{number}.{group_number}.{place}", weight, state, state if counts else group)

    def publish(self) -> None:
        """Take the float32 weights over into the model, on all ranks (after loading them)."""
        for part in self._parts():
            part._copy_main_params_to_model_params()
            part.start_param_sync_for_bucket_group_subset()

    def reload(self) -> None:
        """Take the model's weights over into the float32 ones."""
        self.inner.reload_model_params()

    def _parts(self) -> list[Any]:
        parts = getattr(self.inner, "chained_optimizers", [self.inner])
        return [part for part in parts if not getattr(part, "is_stub_optimizer", False)]


def finite(*values: float) -> bool:
    """Whether none is NaN or infinite."""
    return all(math.isfinite(value) for value in values)
