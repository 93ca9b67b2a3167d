"""The `fsdp` backend: a rank's models, optimizers and passes over transformers, on CPU (gloo) or GPU (NCCL).

With several ranks, or below float32, parameters are sharded by FSDP2. A single float32 rank trains the plain module:
there is nothing to shard, and on a CPU the hooks cost more than a small model's step.
"""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from rljob.types import TokenSignals, TrainSample
from rljob_api.catalogue.estimators import ESTIMATORS
from rljob_api.errors import UserError
from rljob_api.v1alpha1.job import RLJob
from torch import Tensor

from rljob_trainer.algorithms import kl_estimate
from rljob_trainer.checkpoint.files import FileEntry
from rljob_trainer.models.build import DTYPES
from rljob_trainer.training.fsdp.critic import CriticLoss, backward
from rljob_trainer.training.fsdp.models import Construction, actor_weights, reference_weights, warm_optimizer
from rljob_trainer.training.fsdp.optimizer import adamw, gradient_norm, step_clipped
from rljob_trainer.training.fsdp.policy import Policy
from rljob_trainer.training.fsdp.shards import parameters, recompute_blocks, whole
from rljob_trainer.training.fsdp.state import (
    FsdpState,
    Trained,
    about,
    check_about,
    load_optimizer,
    load_state,
    state_tensors,
)
from rljob_trainer.training.gpu_memory import HostStash
from rljob_trainer.training.interface import Backend, EntropyMode, OptimizerStep, Stage, StepLoss
from rljob_trainer.training.microbatch import MicroBatch, Row, collate, plan
from rljob_trainer.training.process_group import all_reduce
from rljob_trainer.training.rank_state import read_about, state_writer
from rljob_trainer.training.rl_loss import RlLoss
from rljob_trainer.weights.buckets import TensorInfo


class FsdpBackend(Backend):
    """See `training.interface.Backend`. Every rank has a share of the batch of its own."""

    def __init__(self, job: RLJob, job_dir: str | Path, rank: int, world_size: int) -> None:
        self.spec, self.job_dir, self.rank, self.world_size = job.spec, Path(job_dir), rank, world_size
        trainer = self.spec.trainer
        self.device = torch.device("cuda" if trainer.gpus_per_replica else "cpu")
        self.dtype = DTYPES[self.spec.model.dtype]
        if self.dtype == torch.float16:
            raise UserError(
                "spec.model.dtype: the fsdp backend does not train in float16 (its range needs loss scaling)",
                hint="use bfloat16, or float32 on CPU",
            )
        offloaded = trainer.fsdp.cpu_offload and self.device.type == "cuda"
        self.sharded = world_size > 1 or self.dtype != torch.float32 or offloaded
        self.uses_process_group = self.sharded
        # A GPU computes no padding; on a CPU padded rows of one length are the faster.
        self.packed = self.device.type == "cuda"
        self.stage = "sft"
        self.tokenizer: Any = None
        self.state: FsdpState
        self._warm: tuple[str, Path] | None = None
        """Stage and folder of the commit whose optimizer states are taken over."""
        self.optimizer_stash = HostStash(lambda: self.state.moments())

    # -- life ---------------------------------------------------------------------------------------------------

    def setup(self) -> None:
        """Choose deterministic algorithms, or not."""
        deterministic = self.spec.deterministic if self.spec.deterministic is not None else self.device.type == "cpu"
        torch.use_deterministic_algorithms(deterministic)
        # Deterministic mode would also fill every fresh tensor with NaN, to find reads of unset memory: slow.
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]

    def load(self, commit_dir: str | None, tokenizer: Any) -> None:
        """Take over weights, optimizer, reference and generators from a commit, or start from `spec.model`."""
        self.tokenizer = tokenizer
        recompute = self._recomputes or (self.spec.sft is not None and self.spec.sft.gradient_checkpointing)
        weights = None if commit_dir else actor_weights(self.spec, self.job_dir)
        policy = self._construction().policy(weights, recompute=recompute)
        torch.manual_seed(self.spec.seed + self.rank)
        optimizer = adamw(policy, self.spec.sft.optimizer if self.spec.sft else self.spec.optimizer)
        self.stage, self.state = "sft", FsdpState(Trained(policy, optimizer))
        if commit_dir is not None:
            found = read_about(commit_dir)
            check_about(found, commit_dir)
            if found["stage"] == "rl":
                self._enter_rl()
            load_state(self.state, commit_dir, self.rank, self.world_size, self.device)
        elif self.spec.checkpoint.warm_start is not None and self.spec.checkpoint.warm_start.optimizer:
            self._warm = warm_optimizer(self.spec, self.job_dir)
            self._warm_start("sft")

    def begin_rl(self) -> None:
        """Freeze the reference (the weights now, or `checkpoint.refLoad`), and start a new optimizer."""
        self.optimizer_stash.take()
        self._enter_rl()
        self._warm_start("rl")
        state = self.state
        mine = dict(parameters(state.policy.module))
        with torch.no_grad():
            if state.reference is not None and self.spec.checkpoint.ref_load is None:
                for name, frozen in parameters(state.reference):
                    frozen.copy_(mine[name])
            if state.critic is not None:
                prefix = f"{state.policy.module.hf.base_model_prefix}."
                trunk = {name.removeprefix(prefix): value for name, value in mine.items()}
                for name, parameter in parameters(state.critic.module):
                    if name in trunk:
                        parameter.copy_(trunk[name])

    def _enter_rl(self) -> None:
        """Stage `rl` with a reference (its weights still to come, unless `refLoad` gives them) and a new optimizer."""
        state, algorithm = self.state, self.spec.algorithm
        self.stage = "rl"
        kl = algorithm.kl
        state.reference = None
        if kl.monitor or kl.loss_coef > 0 or kl.reward_coef > 0:
            weights = reference_weights(self.spec, self.job_dir)
            state.reference = self._construction().policy(weights, recompute=False).eval()
            state.reference.requires_grad_(False)
        state.policy.optimizer = adamw(state.policy.module, self.spec.optimizer)
        if ESTIMATORS[algorithm.advantage_estimator].needs_values:
            critic = self._construction().critic(recompute=self._recomputes)
            state.critic = Trained(critic, adamw(critic, algorithm.critic.optimizer))
        recompute_blocks(state.policy.module.hf, self._recomputes)

    @property
    def _recomputes(self) -> bool:
        """Whether whole layers are recomputed in either stage; `sft.gradientCheckpointing` asks for it in one."""
        return self.spec.trainer.recompute.granularity == "full"

    def _warm_start(self, stage: Stage) -> None:
        """Take up the optimizer's states of `checkpoint.warmStart` when they are of this stage."""
        if self._warm is not None and self._warm[0] == stage:
            load_optimizer(self.state, self._warm[1], self.rank, self.world_size)

    def close(self) -> None:
        """Drop models and optimizers."""
        self.__dict__.pop("state", None)

    # -- steps --------------------------------------------------------------------------------------------------

    def forward_backward(
        self, rows: Sequence[Row], loss: StepLoss, *, temperature: float, entropy: EntropyMode
    ) -> dict[str, float]:
        """See `Backend`."""
        policy, reference = self.state.policy, self.state.reference
        policy.optimizer.zero_grad(set_to_none=True)
        for batch in self._batches(rows):
            ref = None
            if reference is not None:
                with torch.no_grad():
                    ref, _ = self._forward(reference, batch, temperature)
            logprobs, entropies = self._forward(policy.module, batch, temperature, entropy)
            loss(batch, logprobs, ref, entropies).backward()  # type: ignore[no-untyped-call]
        return loss.metrics()

    def apply(self, step: OptimizerStep, loss: float) -> tuple[float, float]:
        """Clip and step, unless the loss or the gradient is not finite. Returns the norm before clipping and the lr."""
        policy = self.state.policy
        norm = gradient_norm(policy.module, loss, step.name, self.rank)
        self.optimizer_stash.take()
        lr = step_clipped(policy.module, policy.optimizer, step, norm)
        if step.spec.offload and self.state.critic is None:
            self.optimizer_stash.put()
        return float(norm), lr

    @torch.no_grad()
    def logprobs(self, rows: Sequence[Row], *, temperature: float) -> list[list[float]]:
        """Of every row's trained tokens, under the weights as they are."""
        result: list[list[float]] = [[] for _ in rows]
        for batch in self._batches(rows):
            logprobs, _ = self._forward(self.state.policy.module, batch, temperature)
            batch.put(result, logprobs)
        return result

    @torch.no_grad()
    def token_signals(self, rows: Sequence[Row], *, temperature: float) -> list[TokenSignals]:
        """See `Backend`. Every micro batch passes through policy, reference and critic before the next."""
        spec, state = self.spec.algorithm.kl, self.state
        kl: list[list[float]] | None = [[] for _ in rows] if spec.reward_coef else None
        values: list[list[float]] | None = [[] for _ in rows] if state.critic is not None else None
        for batch in self._batches(rows):
            if kl is not None:
                assert state.reference is not None
                logprobs, _ = self._forward(state.policy.module, batch, temperature)
                ref, _ = self._forward(state.reference, batch, temperature)
                batch.put(kl, kl_estimate(logprobs, ref, spec.estimator))
            if state.critic is not None and values is not None:
                batch.put(values, state.critic.module(batch.input_ids, batch.positions, batch.packing))
        return [
            TokenSignals(None if kl is None else kl[at], None if values is None else values[at])
            for at in range(len(rows))
        ]

    def critic_step(
        self, loss: RlLoss, samples: Sequence[TrainSample], rows: Sequence[Row], step: OptimizerStep
    ) -> Callable[[], dict[str, float]]:
        """See `Backend`."""
        critic = self.state.critic
        if critic is None:
            return dict
        critic.module.zero_grad(set_to_none=True)
        critic_loss = CriticLoss(loss, samples, self.spec.algorithm.critic.value_clip, self.device)
        backward(critic.module, critic_loss, self._batches(rows))
        metrics = critic_loss.metrics()
        norm = gradient_norm(critic.module, metrics["value_loss"], step.name, self.rank)

        def finish() -> dict[str, float]:
            lr = step_clipped(critic.module, critic.optimizer, step, norm)
            if self.spec.optimizer.offload:
                self.optimizer_stash.put()
            return metrics | {"critic_grad_norm": float(norm), "critic_lr": lr}

        return finish

    # -- weights and state --------------------------------------------------------------------------------------

    def weights_layout(self) -> list[TensorInfo]:
        """Name, whole shape and dtype of every tensor that `gather_weights` gives, sorted; the same on all ranks."""
        dtype = str(self.dtype).removeprefix("torch.")
        named = parameters(self.state.policy.module)
        return [TensorInfo(name, tuple(parameter.shape), dtype) for name, parameter in named]

    def gather_weights(self, names: Sequence[str] | None = None) -> Iterator[tuple[str, Tensor]]:
        """The named tensors (None: all) in `model.dtype`, whole, on this rank's device. Collective: all ranks ask for
        the same."""
        known = dict(parameters(self.state.policy.module))
        for name in known if names is None else names:
            yield name, whole(known[name], self.dtype).to(self.device)

    def hf_config(self) -> tuple[Any, str]:
        """transformers' config of the model, and the model's class."""
        model = self.state.policy.module.hf
        return model.config, type(model).__name__

    def state_writer(self, directory: str, *, copy: bool) -> Callable[[], list[FileEntry]]:
        """See `Backend`."""
        self.optimizer_stash.take()
        header, tensors = about(self.stage, self.world_size), state_tensors(self.state)
        return state_writer(directory, self.rank, header, tensors, self.device, copy=copy)

    def held(self) -> Iterator[Tensor]:
        """What this rank keeps from step to step: weights, the reference's, the critic's, optimizer states. Gradients
        are dropped: the next step makes its own."""
        for model in self.state.models():
            model.zero_grad(set_to_none=True)
            yield from model.parameters()
        yield from self.state.moments()

    # -- inside -------------------------------------------------------------------------------------------------

    def _construction(self) -> Construction:
        return Construction(
            self.spec, self.job_dir, self.tokenizer, self.device, self.dtype, sharded=self.sharded, packed=self.packed
        )

    def _batches(self, rows: Sequence[Row]) -> Iterator[MicroBatch]:
        """The share cut into micro batches, on the device; as many as the rank with most has, since each is a
        collective."""
        trainer = self.spec.trainer
        limit = trainer.max_tokens_per_gpu if trainer.use_dynamic_batch_size else None
        packed = self.packed or any(row.lengths is not None for row in rows)
        batches = plan([len(row.ids) for row in rows], trainer.micro_batch_size, limit, packed=packed)
        number = int(all_reduce(torch.tensor([len(batches)]), "max")) if self.sharded else len(batches)
        for at in range(number):
            yield collate(rows, batches[at] if at < len(batches) else [], packed=packed).to(self.device)

    def _forward(
        self, policy: Policy, batch: MicroBatch, temperature: float, entropy: EntropyMode = "none"
    ) -> tuple[Tensor, Tensor | None]:
        result: tuple[Tensor, Tensor | None] = policy(
            batch.input_ids, batch.positions, batch.targets, temperature, entropy, batch.packing
        )
        return result
