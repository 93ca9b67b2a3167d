"""Policies and critics as the `fsdp` backend trains them: on their device, with their attention, sharded."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from rljob_trainer.backends.critic import Critic
from rljob_trainer.backends.head import CHUNK
from rljob_trainer.backends.packed_attention import use_packed_attention
from rljob_trainer.backends.policy import Policy
from rljob_trainer.backends.shards import recompute_blocks, shard_policy
from rljob_trainer.config.job import RLJobSpec
from rljob_trainer.models import build_model


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

    def policy(self, *, load: bool, recompute: bool, path: str | None = None) -> Policy:
        """The policy, or with `path` another checkpoint as a reference. Without `load` its weights are still to come;
        `recompute`: activations of blocks, in the backward pass."""
        spec = self.spec.model
        if path is not None:
            spec, load = spec.model_copy(update={"path": path, "random_init": None}), True
        model = self._build(spec, load)
        return self._prepare(Policy(model, chunk=CHUNK if self.packed else None), model, recompute)

    def critic(self, *, recompute: bool) -> Critic:
        """The policy's architecture with a head for values; the weights are still to come."""
        model = self._build(self.spec.model, False)
        return self._prepare(Critic(model.base_model), model, recompute)

    def _build(self, spec: Any, load: bool) -> Any:
        return build_model(spec, self.job_dir, self.tokenizer, seed=self.spec.seed, dtype=torch.float32, load=load)

    def _prepare[M: nn.Module](self, module: M, model: Any, recompute: bool) -> M:
        if self.packed or (self.spec.sft is not None and self.spec.sft.packing):
            use_packed_attention(model)
        module = module.to(self.device)
        module.train()
        if recompute:
            recompute_blocks(model)
        if self.sharded:
            shard_policy(module, model.base_model.layers, self.spec.trainer.fsdp, self.dtype, self.device.type)
        return module
