"""The `megatron` backend: one training rank over megatron-core, on a GPU."""

import gc
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from rljob.types import TokenSignals, TrainSample
from rljob_api.manifest.errors import UserError
from rljob_api.v1alpha1.job import RLJob
from rljob_api.v1alpha1.optimizer import OptimizerSpec
from torch import Tensor

from rljob_trainer.algorithms import kl_estimate
from rljob_trainer.checkpoint.files import FileEntry
from rljob_trainer.export.architecture import architecture_of
from rljob_trainer.models import load_tokenizer
from rljob_trainer.models.build import DTYPES, build_config
from rljob_trainer.training import process_group
from rljob_trainer.training.errors import NonFiniteError
from rljob_trainer.training.lr_schedule import learning_rate
from rljob_trainer.training.megatron import parallel, passes
from rljob_trainer.training.megatron.initial_weights import actor_path, open_weights
from rljob_trainer.training.megatron.layout import layout_of
from rljob_trainer.training.megatron.model import PolicyModel, build_policy
from rljob_trainer.training.megatron.optimizer import Optimizer, finite, wrap
from rljob_trainer.training.megatron.options import model_options, recompute_options
from rljob_trainer.training.megatron.packing import Pack, build_pack
from rljob_trainer.training.megatron.state import load_state, save_state, snapshot_state
from rljob_trainer.training.megatron.weights import hf_shapes, hf_tensors, load_weights
from rljob_trainer.training.microbatch import Row, plan
from rljob_trainer.training.rl_loss import RlLoss, count, to_row
from rljob_trainer.training.step_metrics import StepMetrics
from rljob_trainer.weights.arrays import Array, to_array
from rljob_trainer.weights.buckets import TensorInfo

Stage = Literal["sft", "rl"]


class MegatronBackend:
    """One rank. All ranks call the same methods in the same order; those of one data-parallel share with the same rows.

    Normalisers are totals over the global batch, and gradients are summed, so that loss and gradient do not depend on
    how samples are shared out, packed or cut over ranks.
    """

    def __init__(self, job: RLJob, job_dir: str | Path, rank: int, world_size: int) -> None:
        self.spec, self.job_dir, self.rank, self.world_size = job.spec, Path(job_dir), rank, world_size
        if not self.spec.trainer.gpus_per_replica:
            raise UserError(
                "spec.trainer.gpusPerReplica: the megatron backend needs GPUs", hint="use backend fsdp on CPU"
            )
        self.dtype = DTYPES[self.spec.model.dtype]
        if self.dtype != torch.bfloat16:
            raise UserError(
                f"spec.model.dtype: the megatron backend does not train in {self.spec.model.dtype}", hint="use bfloat16"
            )
        self.layout = layout_of(self.spec.trainer.parallelism, world_size)
        self.coordinates = self.layout.coordinates(rank)
        self.device = torch.device("cuda", 0)
        self.stage: Stage = "sft"
        self.rendezvous: process_group.Rendezvous | None = None
        self.tokenizer: Any = None
        self.hf_config: Any = None
        self.model: Any
        self.optimizer: Optimizer
        self.reference: PolicyModel | None = None

    # -- life ---------------------------------------------------------------------------------------------------

    def open_rendezvous(self) -> tuple[str, int]:
        """On rank 0: open the store where the ranks meet, and say where it is."""
        host = process_group.host_address()
        self.rendezvous = process_group.Rendezvous(host, self.world_size, self.spec.trainer.rank_timeout_seconds)
        return host, self.rendezvous.port

    def setup(self, host: str, port: int) -> None:
        """Join the other ranks and form Megatron's groups."""
        torch.set_num_threads(self.spec.trainer.threads_per_rank)
        torch.cuda.set_device(0)  # Ray shows a rank its own GPU alone.
        limit = self.spec.trainer.rank_timeout_seconds
        if self.world_size == 1 and self.rendezvous is None:
            host, port = self.open_rendezvous()
        process_group.join(
            host, port, self.rank, self.world_size, limit, device=self.device, rendezvous=self.rendezvous
        )  # fmt: skip
        parallel.start(self.layout, self.spec.seed, limit)

    def load(self, commit_dir: str | Path | None) -> Stage:
        """Take over weights, optimizer, reference and generators from a commit, or start from `spec.model`.

        Returns the stage that the state belongs to.
        """
        self.tokenizer = self.tokenizer or load_tokenizer(self.spec.model, self.job_dir)
        self.hf_config = build_config(self.spec.model, self.job_dir, self.tokenizer)
        self.stage, self.reference = "sft", None
        policy = self._new_policy()
        if commit_dir is None:
            self._load_weights(policy, actor_path(self.spec.checkpoint, self.job_dir))
        self.model = wrap(policy, overlap=self.layout.data * self.layout.context > 1)
        self.optimizer = Optimizer(self.spec.sft.optimizer if self.spec.sft else self.spec.optimizer, self.model,
                                   self.dtype)  # fmt: skip
        torch.manual_seed(self.spec.seed + self.rank)
        if commit_dir is not None:
            load_state(self, commit_dir)
        return self.stage

    def begin_rl(self) -> None:
        """From here on reinforcement learning: freeze the reference (the weights now, or `checkpoint.refLoad`), and
        start a new optimizer. Does nothing when already there (resumed)."""
        if self.stage == "rl":
            return
        self.enter_rl()
        if self.reference is not None and self.spec.checkpoint.ref_load is None:
            with torch.no_grad():
                pairs = zip(self.model.module.parameters(), self.reference.parameters(), strict=True)
                for mine, frozen in pairs:
                    frozen.copy_(mine)

    def enter_rl(self) -> None:
        """Stage `rl` with a reference (its weights still to come, unless `refLoad` gives them) and a new optimizer."""
        self.stage = "rl"
        kl = self.spec.algorithm.kl
        self.reference = None
        if kl.monitor or kl.loss_coef > 0 or kl.reward_coef > 0:
            self.reference = self._new_policy()
            self.reference.requires_grad_(False)
            self.reference.eval()
            if self.spec.checkpoint.ref_load is not None:
                self._load_weights(self.reference, self.spec.checkpoint.ref_load)
        # The new optimizer starts from the old one's float32 weights, not from the model's rounded ones.
        exact = {slot.name: slot.weight.data.clone() for slot in self.optimizer.slots()}
        self.optimizer = Optimizer(self.spec.optimizer, self.model, self.dtype)
        for slot in self.optimizer.slots():
            slot.weight.data.copy_(exact[slot.name])
        for key, value in recompute_options(self.spec.trainer.recompute).items():
            setattr(self.model.module.config, key, value)

    def close(self) -> None:
        """Leave the other ranks."""
        for name in ("model", "reference", "optimizer"):
            self.__dict__.pop(name, None)
        gc.collect()
        parallel.stop()
        process_group.leave()

    # -- steps --------------------------------------------------------------------------------------------------

    def sft_step(self, rows: Sequence[Any], *, lr_step: int, total_steps: int) -> dict[str, float]:
        """One optimizer step on demonstrations: mean cross entropy over the trained tokens of the global batch."""
        if self.stage != "sft" or self.spec.sft is None:
            raise RuntimeError("sft_step: not in the stage of supervised fine-tuning")
        data = [Row(row.input_ids, row.loss_mask, getattr(row, "lengths", None)) for row in rows]
        packs = self._packs(data)
        totals = process_group.all_reduce(torch.tensor([sum(len(pack.batch.targets) for pack in packs), len(data)]))
        tokens = int(totals[0])
        if tokens == 0:
            raise ValueError("sft_step: no trained token in the whole batch")
        meters = StepMetrics(("loss",))

        def loss_of(number: int, pack: Pack, logprobs: Tensor, entropy: Tensor) -> Tensor:
            loss = -logprobs.sum() / tokens
            meters.add(loss=loss.detach().double())
            return loss

        self._zero_grad()
        passes.train(self.model, packs, 1.0, loss_of)
        loss = parallel.from_last_stage(meters.reduce()["loss"] if self._last else 0.0)
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

    def token_signals(self, samples: Sequence[TrainSample]) -> list[TokenSignals]:
        """The KL against the reference of each trained token (`kl.rewardCoef`), under the weights as they are."""
        if self.stage != "rl":
            raise RuntimeError("token_signals before begin_rl")
        spec = self.spec.algorithm.kl
        if not spec.reward_coef:
            return [TokenSignals() for _ in samples]
        assert self.reference is not None
        rows = [to_row(sample) for sample in samples]
        mine, theirs = self._trained_logprobs(rows), self._trained_logprobs(rows, self.reference)
        return [
            TokenSignals(kl_estimate(torch.tensor(own), torch.tensor(ref), spec.estimator).tolist())
            for own, ref in zip(mine, theirs, strict=True)
        ]

    def rl_step(
        self,
        samples: Sequence[TrainSample],
        *,
        lr_step: int,
        total_steps: int,
        old_logprobs: Sequence[Sequence[float]] | None = None,
    ) -> dict[str, float]:
        """One optimizer step on this share of the batch. Metrics are those of the global batch.

        `old_logprobs` come from `compute_logprobs` at the start of the rollout. Without them the policy is its own old
        policy (one step per rollout): the ratio is 1 exactly. Raises NonFiniteError, weights untouched.
        """
        if self.stage != "rl":
            raise RuntimeError("rl_step before begin_rl")
        rows = [to_row(sample) for sample in samples]
        algorithm = self.spec.algorithm
        totals = count(samples, rows, by_prompt=algorithm.loss_aggregation == "per_prompt")
        if totals.samples == 0:
            raise ValueError("rl_step: the batch is empty")
        constant = self.spec.rollout.sampling.max_response_length
        loss_of = RlLoss(algorithm, samples, totals, old_logprobs, self.device, constant_length=constant)
        if loss_of.needs_logprobs_first:
            loss_of.set_batch_weights(loss_of.old or self._trained_logprobs(rows))
        packs = self._packs(rows)
        references = None
        if self.reference is not None:
            references = passes.evaluate(self.reference, packs, self._temperature)

        def share(number: int, pack: Pack, logprobs: Tensor, entropy: Tensor) -> Tensor:
            return loss_of(pack.batch, logprobs, references[number] if references else None, entropy)

        self._zero_grad()
        passes.train(self.model, packs, self._temperature, share)
        metrics = parallel.from_last_stage(loss_of.metrics() if self._last else {})
        norm, lr = self._apply(self.spec.optimizer, metrics["loss"], lr_step, total_steps, f"RL step {lr_step}")
        return metrics | {"grad_norm": norm, "lr": lr}

    # -- weights and state --------------------------------------------------------------------------------------

    def full_weights(self) -> dict[str, Array]:
        """All weights in `model.dtype` under their Hugging Face names (tied ones once), on rank 0; {} elsewhere.
        Collective. The arrays are copies; bfloat16 is carried as uint16 (see `weights.arrays`)."""
        return {name: to_array(value) for name, value in self._gather() if self.rank == 0}

    def weights_layout(self) -> list[TensorInfo]:
        """Name, whole shape and dtype of every tensor that `gather_weights` gives, in its order."""
        dtype = str(self.dtype).removeprefix("torch.")
        return [TensorInfo(name, shape, dtype) for name, shape in hf_shapes(self.model.module.arch)]

    def gather_weights(self, names: Sequence[str]) -> Iterator[tuple[str, Tensor]]:
        """The named tensors in `model.dtype`, whole, on this rank's device, in the order of `weights_layout`.
        Collective: all ranks ask for the same."""
        return hf_tensors(self.model.module, self.layout, self.coordinates, names)

    def save(self, directory: str | Path) -> list[FileEntry]:
        """Write this rank's state into a commit's (temporary) folder, durably; entries for the manifest. Collective."""
        entries = save_state(self, directory)
        process_group.barrier()
        return entries

    def snapshot(self, directory: str | Path) -> Callable[[], list[FileEntry]]:
        """Copy this rank's state; the result, called in any thread, writes it as `save` does."""
        return snapshot_state(self, directory)

    def export_hf(self, directory: str | Path) -> None:
        """Write the model and its tokenizer as a Hugging Face folder (rank 0). Collective."""
        from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

        from rljob_trainer.checkpoint.hf import save_hf

        weights = {name: value.cpu() for name, value in self._gather() if self.rank == 0}
        if self.rank == 0:
            kind = MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[self.hf_config.model_type]
            save_hf(self.hf_config, kind, weights, self.tokenizer, directory)
        process_group.barrier()

    def held(self) -> Iterator[Tensor]:
        """What this rank keeps from step to step: weights and gradients in Megatron's buffers, the reference's weights,
        the optimizer's float32 weights and states."""
        for buffer in (*self.model.buffers, *self.model.expert_parallel_buffers):
            yield from (tensor for tensor in (buffer.param_data, buffer.grad_data) if tensor is not None)
        yield from self.model.module.parameters()
        if self.reference is not None:
            yield from self.reference.parameters()
        for slot in self.optimizer.slots():
            yield slot.weight
            yield from (value for value in slot.state.values() if isinstance(value, Tensor))

    # -- inside -------------------------------------------------------------------------------------------------

    @property
    def _last(self) -> bool:
        """Whether this rank is on the last pipeline stage, where losses are."""
        return self.coordinates.pipeline == self.layout.pipeline - 1

    @property
    def _temperature(self) -> float:
        # The engine reports log softmax(logits / T): the trainer speaks of the same distribution (greedy counts as 1).
        return self.spec.rollout.sampling.temperature or 1.0

    def _gather(self) -> Any:
        return hf_tensors(self.model.module, self.layout, self.coordinates)

    def _new_policy(self) -> PolicyModel:
        arch = architecture_of(self.hf_config)
        trainer, sft = self.spec.trainer, self.spec.sft
        options = model_options(arch, self.hf_config, self.layout, dict(trainer.megatron_args))
        force = self.stage == "sft" and sft is not None and sft.gradient_checkpointing
        options |= recompute_options(trainer.recompute, force_full=force)
        return build_policy(options, arch, self.hf_config, self.dtype)

    def _load_weights(self, policy: PolicyModel, path: str | None) -> None:
        with open_weights(
            self.spec.model, self.job_dir, self.tokenizer, policy.arch, seed=self.spec.seed, path=path
        ) as whole_of:
            load_weights(policy, self.layout, self.coordinates, whole_of)

    def _packs(self, rows: Sequence[Row]) -> list[Pack]:
        """The share cut into forward passes; as many as the share with most has, since each may be a collective."""
        trainer, layout = self.spec.trainer, self.layout
        limit = trainer.max_tokens_per_gpu * layout.context if trainer.use_dynamic_batch_size else None
        cut = plan([len(row.ids) for row in rows], trainer.micro_batch_size, limit, packed=True)
        number = max(1, int(process_group.all_reduce(torch.tensor([len(cut)]), "max")))
        return [
            build_pack(
                rows,
                cut[at] if at < len(cut) else [],
                row_multiple=layout.row_multiple,
                pack_multiple=layout.pack_multiple,
                context_rank=self.coordinates.context,
                context_ranks=layout.context,
            )
            for at in range(number)
        ]

    def _trained_logprobs(self, rows: Sequence[Row], model: PolicyModel | None = None) -> list[list[float]]:
        """Of every row's trained tokens, under the policy or another model; the same on all ranks of a share."""
        result: list[list[float]] = [[] for _ in rows]
        packs = self._packs(rows)
        found = passes.evaluate(model or self.model, packs, self._temperature)
        for pack, logprobs in zip(packs, found, strict=False):
            sizes = pack.batch.sample_tokens.tolist()
            for row, part in zip(pack.batch.rows, torch.split(logprobs.cpu(), sizes), strict=False):
                result[row] = part.tolist()
        return parallel.from_last_stage(result)

    def _zero_grad(self) -> None:
        self.model.zero_grad_buffer()
        self.optimizer.inner.zero_grad()

    def _apply(self, spec: OptimizerSpec, loss: float, step: int, total: int, what: str) -> tuple[float, float]:
        """Clip and step, unless the loss or the gradient is not finite. Returns the norm before clipping and the lr."""
        norm = self.optimizer.grad_norm()
        if not finite(loss, norm):
            raise NonFiniteError(what, loss, norm, self.rank)
        lr = learning_rate(spec, step, total)
        self.optimizer.step(lr)
        return norm, lr
