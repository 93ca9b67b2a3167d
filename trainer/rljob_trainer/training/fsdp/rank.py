"""The `fsdp` backend: one training rank over a transformers model, on CPU (gloo) or GPU (NCCL).

With several ranks, or below float32, parameters are sharded by FSDP2. A single float32 rank trains the plain module:
there is nothing to shard, and on a CPU the hooks cost more than a small model's step.
"""

import gc
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, Protocol

import torch
from rljob.types import TokenSignals, TrainSample
from rljob_api.catalogue.estimators import ESTIMATORS
from rljob_api.manifest.errors import UserError
from rljob_api.v1alpha1.job import RLJob
from rljob_api.v1alpha1.optimizer import OptimizerSpec
from torch import Tensor

from rljob_trainer.algorithms import kl_estimate
from rljob_trainer.checkpoint.files import FileEntry
from rljob_trainer.models import load_tokenizer
from rljob_trainer.models.build import DTYPES
from rljob_trainer.training import process_group
from rljob_trainer.training.fsdp.construct import Construction
from rljob_trainer.training.fsdp.critic import Critic, CriticLoss, backward
from rljob_trainer.training.fsdp.initial_weights import actor_weights, reference_weights, warm_optimizer
from rljob_trainer.training.fsdp.offload import HostStash
from rljob_trainer.training.fsdp.optimize import adamw, gradient_norm, step
from rljob_trainer.training.fsdp.policy import Policy
from rljob_trainer.training.fsdp.shards import full, parameters, recompute_blocks, whole
from rljob_trainer.training.fsdp.state import MOMENTS, load_optimizer, load_state, save_state, snapshot_state
from rljob_trainer.training.meters import Meters
from rljob_trainer.training.microbatch import MicroBatch, Row, collate, plan
from rljob_trainer.training.rl_loss import RlLoss, count, to_row
from rljob_trainer.weights.arrays import Array, to_array
from rljob_trainer.weights.buckets import TensorInfo

Stage = Literal["sft", "rl"]


class SftRowLike(Protocol):
    """A demonstration: ids, and 1 where the loss is taken."""

    @property
    def input_ids(self) -> Sequence[int]: ...

    @property
    def loss_mask(self) -> Sequence[int]: ...


def _sft_row(row: SftRowLike) -> Row:
    """With `lengths`, the row holds several documents."""
    return Row(row.input_ids, row.loss_mask, getattr(row, "lengths", None))


def _store(rows: list[list[float]], batch: MicroBatch, values: Tensor) -> None:
    """Put the values of a pass, one per trained token, where their rows are."""
    for row, part in zip(batch.rows, torch.split(values.cpu(), batch.sample_tokens.tolist()), strict=False):
        rows[row] = part.tolist()


class FsdpRank:
    """One rank. All ranks call the same methods in the same order, each with its own share of the batch.

    Normalisers are totals over all ranks, so that the loss and the gradient are those of the whole batch however it
    is shared out; a rank may get fewer rows than another, or none.
    """

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
        # A GPU computes no padding; on a CPU padded rows of one length are the faster.
        self.packed = self.device.type == "cuda"
        self.stage: Stage = "sft"
        self.rendezvous: process_group.Rendezvous | None = None
        self.tokenizer: Any = None
        self.policy: Policy
        self.reference: Policy | None = None
        self.optimizer: torch.optim.AdamW
        self._warm: tuple[str, Path] | None = None
        self.critic: Critic | None = None
        self.critic_optimizer: torch.optim.AdamW
        self.optimizer_stash = HostStash(self._optimizer_states)

    # -- life ---------------------------------------------------------------------------------------------------

    def open_rendezvous(self) -> tuple[str, int]:
        """On rank 0: open the store where the ranks meet, and say where it is."""
        host = process_group.host_address()
        self.rendezvous = process_group.Rendezvous(host, self.world_size, self.spec.trainer.rank_timeout_seconds)
        return host, self.rendezvous.port

    def setup(self, host: str, port: int) -> None:
        """Set threads and determinism, and join the other ranks."""
        torch.set_num_threads(self.spec.trainer.threads_per_rank)
        deterministic = self.spec.deterministic if self.spec.deterministic is not None else self.device.type == "cpu"
        torch.use_deterministic_algorithms(deterministic)
        # Deterministic mode would also fill every fresh tensor with NaN, to find reads of unset memory: slow.
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
        if self.device.type == "cuda":
            torch.cuda.set_device(0)  # Ray shows a rank its own GPU alone.
        if self.sharded:
            process_group.join(
                host, port, self.rank, self.world_size, self.spec.trainer.rank_timeout_seconds,
                device=self.device, rendezvous=self.rendezvous,
            )  # fmt: skip

    def load(self, commit_dir: str | Path | None) -> Stage:
        """Take over weights, optimizer, reference and generators from a commit, or start from `spec.model`.

        Returns the stage that the state belongs to.
        """
        self.tokenizer = self.tokenizer or load_tokenizer(self.spec.model, self.job_dir)
        recompute = self._recomputes or (self.spec.sft is not None and self.spec.sft.gradient_checkpointing)
        weights = None if commit_dir else actor_weights(self.spec, self.job_dir)
        self.policy = self._construction().policy(weights, recompute=recompute)
        torch.manual_seed(self.spec.seed + self.rank)
        self.stage, self.reference, self.critic = "sft", None, None
        self.optimizer = adamw(self.policy, self.spec.sft.optimizer if self.spec.sft else self.spec.optimizer)
        if commit_dir is not None:
            load_state(self, commit_dir)
        elif self.spec.checkpoint.warm_start is not None and self.spec.checkpoint.warm_start.optimizer:
            self._warm = warm_optimizer(self.spec, self.job_dir)
            self._warm_start("sft")
        return self.stage

    def begin_rl(self) -> None:
        """From here on reinforcement learning: freeze the reference (the weights now, or `checkpoint.refLoad`), and
        start a new optimizer. Does nothing when already there (resumed)."""
        if self.stage == "rl":
            return
        self.optimizer_stash.take()
        self.enter_rl()
        self._warm_start("rl")
        mine = dict(parameters(self.policy))
        with torch.no_grad():
            if self.reference is not None and self.spec.checkpoint.ref_load is None:
                for name, frozen in parameters(self.reference):
                    frozen.copy_(mine[name])
            if self.critic is not None:
                prefix = f"{self.policy.hf.base_model_prefix}."
                trunk = {name.removeprefix(prefix): value for name, value in mine.items()}
                for name, parameter in parameters(self.critic):
                    if name in trunk:
                        parameter.copy_(trunk[name])

    def enter_rl(self) -> None:
        """Stage `rl` with a reference (its weights still to come, unless `refLoad` gives them) and a new optimizer."""
        self.stage = "rl"
        kl = self.spec.algorithm.kl
        self.reference = None
        if kl.monitor or kl.loss_coef > 0 or kl.reward_coef > 0:
            weights = reference_weights(self.spec, self.job_dir)
            self.reference = self._construction().policy(weights, recompute=False).eval()
            self.reference.requires_grad_(False)
        self.optimizer = adamw(self.policy, self.spec.optimizer)
        if ESTIMATORS[self.spec.algorithm.advantage_estimator].needs_values:
            self.critic = self._construction().critic(recompute=self._recomputes)
            self.critic_optimizer = adamw(self.critic, self.spec.algorithm.critic.optimizer)
        recompute_blocks(self.policy.hf, self._recomputes)

    @property
    def _recomputes(self) -> bool:
        """Whether whole layers are recomputed in either stage; `sft.gradientCheckpointing` asks for it in one."""
        return self.spec.trainer.recompute.granularity == "full"

    def _warm_start(self, stage: Stage) -> None:
        """Take up the optimizer's states of `checkpoint.warmStart` when they are of this stage."""
        if self._warm is not None and self._warm[0] == stage:
            load_optimizer(self, self._warm[1])

    def close(self) -> None:
        """Leave the other ranks, and free what holds the process group: its threads must be gone before the
        interpreter is, since one that wants Python's lock then aborts the process."""
        for name in ("policy", "reference", "optimizer", "critic", "critic_optimizer"):
            self.__dict__.pop(name, None)
        if self.sharded:
            process_group.leave()
        gc.collect()

    # -- steps --------------------------------------------------------------------------------------------------

    def sft_step(self, rows: Sequence[SftRowLike], *, lr_step: int, total_steps: int) -> dict[str, float]:
        """One optimizer step on demonstrations: mean cross entropy over the trained tokens of the global batch."""
        if self.stage != "sft" or self.spec.sft is None:
            raise RuntimeError("sft_step: not in the stage of supervised fine-tuning")
        data = [_sft_row(row) for row in rows]
        totals = process_group.all_reduce(torch.tensor([sum(len(row.trained()) for row in data), len(data)]))
        tokens = int(totals[0])
        if tokens == 0:
            raise ValueError("sft_step: no trained token in the whole batch")
        meters = Meters(("loss",))

        def loss_of(batch: MicroBatch) -> Tensor:
            logprobs, _ = self._forward(self.policy, batch, temperature=1.0)
            loss = -logprobs.sum() / tokens
            meters.add(loss=loss.detach().double())
            return loss

        self.optimizer.zero_grad(set_to_none=True)
        for batch in self._batches(data):
            loss_of(batch).backward()  # type: ignore[no-untyped-call]
        loss = meters.reduce()["loss"]
        norm, lr = self._apply(self.spec.sft.optimizer, loss, lr_step, total_steps, f"SFT step {lr_step}")
        return {"loss": loss, "grad_norm": norm, "lr": lr, "tokens": float(tokens), "rows": float(totals[1])}

    def compute_logprobs(self, samples: Sequence[TrainSample]) -> list[list[float]]:
        """Log-probabilities of the response tokens under the weights as they are, 0 where not trained.

        Wanted once per rollout, before its first step, when it has several steps (`old_logprobs` of `rl_step`).
        """
        trained = self._trained_logprobs([to_row(sample) for sample in samples])
        result = []
        for sample, values in zip(samples, trained, strict=True):
            source, first = iter(values), 1 if not sample.prompt_ids else 0
            result.append([next(source) if mask and at >= first else 0.0 for at, mask in enumerate(sample.loss_mask)])
        return result

    @torch.no_grad()
    def token_signals(self, samples: Sequence[TrainSample]) -> list[TokenSignals]:
        """What advantages are made of beside rewards, under the weights as they are: the critic's values (`gae`) and
        the KL against the reference (`kl.rewardCoef`). Wanted once per rollout, before its first step. Collective."""
        if self.stage != "rl":
            raise RuntimeError("token_signals before begin_rl")
        rows, spec = [to_row(sample) for sample in samples], self.spec.algorithm.kl
        kl: list[list[float]] | None = [[] for _ in rows] if spec.reward_coef else None
        values: list[list[float]] | None = [[] for _ in rows] if self.critic is not None else None
        for batch in self._batches(rows):
            if kl is not None:
                assert self.reference is not None
                logprobs, _ = self._forward(self.policy, batch)
                ref, _ = self._forward(self.reference, batch)
                _store(kl, batch, kl_estimate(logprobs, ref, spec.estimator))
            if self.critic is not None and values is not None:
                moved = self._move(batch.input_ids), self._move(batch.positions)
                _store(values, batch, self.critic(*moved, batch.packing))
        return [
            TokenSignals(None if kl is None else kl[at], None if values is None else values[at])
            for at in range(len(rows))
        ]

    def rl_step(
        self,
        samples: Sequence[TrainSample],
        *,
        lr_step: int,
        total_steps: int,
        old_logprobs: Sequence[Sequence[float]] | None = None,
    ) -> dict[str, float]:
        """One optimizer step on this rank's share of the batch. Metrics are those of the global batch.

        `old_logprobs` come from `compute_logprobs` at the start of the rollout. Without them the policy is its own old
        policy (one step per rollout): the ratio is 1 exactly. Raises NonFiniteError, weights untouched.
        """
        if self.stage != "rl":
            raise RuntimeError("rl_step before begin_rl")
        algorithm = self.spec.algorithm
        rows = [to_row(sample) for sample in samples]
        totals = count(samples, rows, by_prompt=algorithm.loss_aggregation == "per_prompt")
        if totals.samples == 0:
            raise ValueError("rl_step: the batch is empty")
        constant = self.spec.rollout.sampling.max_response_length
        loss_of = RlLoss(algorithm, samples, totals, old_logprobs, self.device, constant_length=constant)
        what = f"RL step {lr_step}"
        finish_critic = self._critic_step(loss_of, samples, rows, lr_step, total_steps, what)
        if loss_of.needs_logprobs_first:
            loss_of.set_batch_weights(loss_of.old or self._trained_logprobs(rows))
        entropy_mode = "gradient" if algorithm.entropy_coef else "value"
        self.optimizer.zero_grad(set_to_none=True)
        for batch in self._batches(rows):
            ref = None
            if self.reference is not None:
                with torch.no_grad():
                    ref, _ = self._forward(self.reference, batch)
            logprobs, entropy = self._forward(self.policy, batch, entropy=entropy_mode)
            loss_of(batch, logprobs, ref, entropy).backward()  # type: ignore[no-untyped-call]
        metrics = loss_of.metrics()
        norm, lr = self._apply(self.spec.optimizer, metrics["loss"], lr_step, total_steps, what)
        return metrics | {"grad_norm": norm, "lr": lr} | finish_critic()

    def _critic_step(
        self, loss: RlLoss, samples: Sequence[TrainSample], rows: Sequence[Row], number: int, total: int, what: str
    ) -> Callable[[], dict[str, float]]:
        """Gradients of the critic, if there is one, found to be finite. The result applies them and says the metrics:
        after the policy's turn, so that a step is applied to both or to neither."""
        critic, spec = self.critic, self.spec.algorithm.critic
        if critic is None:
            return dict
        critic.zero_grad(set_to_none=True)
        critic_loss = CriticLoss(loss, samples, spec.value_clip, self.device)
        backward(critic, critic_loss, self._batches(rows), self._move)
        metrics = critic_loss.metrics()
        norm = gradient_norm(critic, metrics["value_loss"], f"{what}, critic", self.rank)

        def finish() -> dict[str, float]:
            lr = step(critic, self.critic_optimizer, spec.optimizer, norm, number, total)
            if self.spec.optimizer.offload:
                self.optimizer_stash.put()
            return metrics | {"critic_grad_norm": float(norm), "critic_lr": lr}

        return finish

    # -- weights and state --------------------------------------------------------------------------------------

    def full_weights(self) -> dict[str, Array]:
        """All weights in `model.dtype` under their Hugging Face names (tied ones once), on rank 0; {} elsewhere.
        Collective. The arrays are copies; bfloat16 is carried as uint16 (see `weights.arrays`)."""
        return {name: to_array(value) for name, value in self._gather() if self.rank == 0}

    def weights_layout(self) -> list[TensorInfo]:
        """Name, whole shape and dtype of every tensor that `gather_weights` gives, sorted; the same on all ranks."""
        dtype = str(self.dtype).removeprefix("torch.")
        return [TensorInfo(name, tuple(parameter.shape), dtype) for name, parameter in parameters(self.policy)]

    def gather_weights(self, names: Sequence[str]) -> Iterator[tuple[str, Tensor]]:
        """The named tensors in `model.dtype`, whole, on this rank's device. Collective: all ranks ask for the same."""
        known = dict(parameters(self.policy))
        for name in names:
            yield name, whole(known[name], self.dtype).to(self.device)

    def save(self, directory: str | Path) -> list[FileEntry]:
        """Write this rank's state into a commit's (temporary) folder, durably; entries for the manifest. Collective."""
        self.optimizer_stash.take()
        entries = save_state(self, directory)
        process_group.barrier()
        return entries

    def snapshot(self, directory: str | Path) -> Callable[[], list[FileEntry]]:
        """Copy this rank's state; the result, called in any thread, writes it as `save` does."""
        self.optimizer_stash.take()
        return snapshot_state(self, directory)

    def export_hf(self, directory: str | Path) -> None:
        """Write the model and its tokenizer as a Hugging Face folder (rank 0). Collective."""
        from rljob_trainer.checkpoint.hf import save_hf

        weights = {name: value.cpu() for name, value in self._gather() if self.rank == 0}
        if self.rank == 0:
            save_hf(self.policy.hf.config, type(self.policy.hf).__name__, weights, self.tokenizer, directory)
        process_group.barrier()

    # -- inside -------------------------------------------------------------------------------------------------

    def _gather(self) -> Iterator[tuple[str, Tensor]]:
        for name, parameter in parameters(self.policy):
            yield name, full(parameter.detach()).to(self.dtype)

    def _construction(self) -> Construction:
        return Construction(
            self.spec, self.job_dir, self.tokenizer, self.device, self.dtype, sharded=self.sharded, packed=self.packed
        )

    def _batches(self, rows: Sequence[Row]) -> Iterator[MicroBatch]:
        """The share cut into micro batches; as many as the rank with most has, since each is a collective."""
        trainer = self.spec.trainer
        limit = trainer.max_tokens_per_gpu if trainer.use_dynamic_batch_size else None
        packed = self.packed or any(row.lengths is not None for row in rows)
        batches = plan([len(row.ids) for row in rows], trainer.micro_batch_size, limit, packed=packed)
        number = int(process_group.all_reduce(torch.tensor([len(batches)]), "max")) if self.sharded else len(batches)
        for at in range(number):
            yield collate(rows, batches[at] if at < len(batches) else [], packed=packed).to(self.device)

    def _forward(
        self, policy: Policy, batch: MicroBatch, *, entropy: str = "none", temperature: float | None = None
    ) -> tuple[Tensor, Tensor | None]:
        # The engine reports log softmax(logits / T): the trainer speaks of the same distribution (greedy counts as 1).
        temperature = temperature or self.spec.rollout.sampling.temperature or 1.0
        moved = [self._move(tensor) for tensor in (batch.input_ids, batch.positions, batch.targets)]
        result: tuple[Tensor, Tensor | None] = policy(*moved, temperature, entropy, batch.packing)
        return result

    def _move(self, tensor: Tensor) -> Tensor:
        return tensor.to(self.device)

    @torch.no_grad()
    def _trained_logprobs(self, rows: Sequence[Row]) -> list[list[float]]:
        result: list[list[float]] = [[] for _ in rows]
        for batch in self._batches(rows):
            logprobs, _ = self._forward(self.policy, batch)
            _store(result, batch, logprobs)
        return result

    def _apply(self, spec: OptimizerSpec, loss: float, number: int, total: int, what: str) -> tuple[float, float]:
        """Clip and step, unless the loss or the gradient is not finite. Returns the norm before clipping and the lr."""
        norm = gradient_norm(self.policy, loss, what, self.rank)
        self.optimizer_stash.take()
        lr = step(self.policy, self.optimizer, spec, norm, number, total)
        if spec.offload and self.critic is None:
            self.optimizer_stash.put()
        return float(norm), lr

    def held(self) -> Iterator[Tensor]:
        """What this rank keeps from step to step: weights, the reference's, the critic's, optimizer states. Gradients
        are dropped: the next step makes its own."""
        for model in (self.policy, self.reference, self.critic):
            if model is not None:
                model.zero_grad(set_to_none=True)
                yield from model.parameters()
        yield from self._optimizer_states()

    def _optimizer_states(self) -> Iterator[Tensor]:
        """The moments of all optimizers: what `optimizer.offload` keeps in host memory between steps."""
        for optimizer in [self.optimizer] + ([self.critic_optimizer] if self.critic is not None else []):
            for state in optimizer.state.values():
                yield from (state[key] for key in MOMENTS if key in state)
