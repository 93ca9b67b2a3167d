"""Policies and critics as the `fsdp` backend trains them: on their device, with their attention, sharded."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from rljob_api.v1alpha1.job import RLJobSpec
from rljob_api.v1alpha1.model import ModelSpec
from torch import nn

from rljob_trainer.models import build_model
from rljob_trainer.models.meta import materialize, to_device
from rljob_trainer.training.fsdp.critic import Critic
from rljob_trainer.training.fsdp.fused_layers import use_fused_layers
from rljob_trainer.training.fsdp.initial_weights import Initial, fill
from rljob_trainer.training.fsdp.packed_attention import use_packed_attention
from rljob_trainer.training.fsdp.policy import Policy
from rljob_trainer.training.fsdp.shards import recompute_blocks, shard_policy
from rljob_trainer.training.vocab import LOGITS


@dataclass(frozen=True)
class Construction:
    """What all models of a rank have in common. Parameters are float32: the master weights."""

    spec: RLJobSpec
    job_dir: Path
    tokenizer: Any
    device: torch.device
    dtype: torch.dtype
    """That of computing, when sharded."""
    sharded: bool
    packed: bool
    """Whether passes are packed whatever the rows are."""

    def policy(self, weights: Initial | None, *, recompute: bool) -> Policy:
        """A policy, or a reference, with these weights; without any they are still to come, and undefined.
        `recompute`: activations of blocks, in the backward pass."""
        random = weights is not None and weights.weights is None
        model = self._build(self.spec.model if weights is None else weights.model, meta=not random)
        chunk = max(1, LOGITS // model.config.vocab_size) if self.packed else None
        policy = self._prepare(Policy(model, chunk=chunk), model, recompute)
        materialize(policy, "cpu" if self.spec.trainer.fsdp.cpu_offload else self.device)
        if weights is not None:
            rows_of = (dist.get_rank(), dist.get_world_size()) if self.sharded else (0, 1)
            fill(policy, weights, self.tokenizer, self.job_dir, rows_of)
        return policy

    def critic(self, *, recompute: bool) -> Critic:
        """The policy's architecture with a head for values; the weights are still to come."""
        model = self._build(self.spec.model, meta=False)
        return self._prepare(Critic(model.base_model), model, recompute)

    def _build(self, spec: ModelSpec, *, meta: bool) -> Any:
        return build_model(
            spec, self.job_dir, self.tokenizer, seed=self.spec.seed, dtype=torch.float32, load=False, meta=meta
        )

    def _prepare[M: nn.Module](self, module: M, model: Any, recompute: bool) -> M:
        if self.packed or (self.spec.sft is not None and self.spec.sft.packing):
            use_packed_attention(model)
        if self.device.type == "cuda":
            use_fused_layers(model)
        module = to_device(module, self.device)
        module.train()
        if recompute:
            recompute_blocks(model)
        if self.sharded:
            shard_policy(module, model.base_model.layers, self.spec.trainer.fsdp, self.dtype, self.device.type)
        return module
