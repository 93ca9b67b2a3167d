"""The `megatron` backend: a rank's model, optimizer and passes over megatron-core, on a GPU."""

import gc
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from rljob.types import TokenSignals
from rljob_api.errors import UserError
from rljob_api.v1alpha1.job import RLJob
from torch import Tensor

try:
    import megatron.core  # noqa: F401
except ImportError as error:
    raise UserError(
        "spec.trainer.backend: megatron-core is not installed here",
        hint="use the trainer image (or `pip install rljob[trainer,megatron]`), or backend fsdp",
    ) from error

from rljob_trainer.algorithms import kl_estimate
from rljob_trainer.checkpoint.files import FileEntry
from rljob_trainer.export.architecture import architecture_of
from rljob_trainer.models.build import DTYPES, build_config
from rljob_trainer.training.errors import NonFiniteError
from rljob_trainer.training.interface import Backend, EntropyMode, OptimizerStep, StepLoss
from rljob_trainer.training.lr_schedule import learning_rate
from rljob_trainer.training.megatron import parallel, passes
from rljob_trainer.training.megatron.initial_weights import actor_path, open_weights
from rljob_trainer.training.megatron.layout import layout_of
from rljob_trainer.training.megatron.model import PolicyModel, build_policy
from rljob_trainer.training.megatron.optimizer import Optimizer, finite, wrap
from rljob_trainer.training.megatron.options import model_options, recompute_options
from rljob_trainer.training.megatron.packing import Pack, build_pack
from rljob_trainer.training.megatron.state import MegatronState, about, check_about, load_state, state_tensors
from rljob_trainer.training.megatron.weights import hf_shapes, hf_tensors, load_weights, named_parameters
from rljob_trainer.training.microbatch import Row, plan
from rljob_trainer.training.process_group import all_reduce
from rljob_trainer.training.rank_state import read_about, state_writer
from rljob_trainer.weights.buckets import TensorInfo


class MegatronBackend(Backend):
    """See `training.interface.Backend`. Ranks of one data-parallel share are given the same rows.

    Normalisers are totals over the global batch, and gradients are summed, so that loss and gradient do not depend on
    how samples are shared out, packed or cut over ranks.
    """

    def __init__(self, job: RLJob, job_dir: str | Path, rank: int, world_size: int) -> None:
        self.spec, self.job_dir, self.rank = job.spec, Path(job_dir), rank
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
        self.uses_process_group = True
        self.stage = "sft"
        self.tokenizer: Any = None
        self.config: Any = None
        """transformers' config of the model."""
        self.model: Any
        """The policy in Megatron's wrapper that holds the buffers of gradients."""
        self.optimizer: Optimizer
        self.reference: PolicyModel | None = None

    # -- life ---------------------------------------------------------------------------------------------------

    def setup(self) -> None:
        """Form Megatron's groups."""
        parallel.start(self.layout, self.spec.seed, self.spec.trainer.rank_timeout_seconds)

    def load(self, commit_dir: str | None, tokenizer: Any) -> None:
        """Take over weights, optimizer, reference and generators from a commit, or start from `spec.model`."""
        self.tokenizer = tokenizer
        self.config = build_config(self.spec.model, self.job_dir, tokenizer)
        self.stage, self.reference = "sft", None
        policy = self._new_policy()
        if commit_dir is None:
            self._load_weights(policy, actor_path(self.spec.checkpoint, self.job_dir))
        self.model = wrap(policy, overlap=self.layout.data * self.layout.context > 1)
        self.optimizer = Optimizer(self.spec.sft.optimizer if self.spec.sft else self.spec.optimizer, self.model,
                                   self.dtype)  # fmt: skip
        torch.manual_seed(self.spec.seed + self.rank)
        if commit_dir is not None:
            found = read_about(commit_dir)
            check_about(found, self.layout, commit_dir)
            if found["stage"] == "rl":
                self._enter_rl()
            load_state(self._state(), commit_dir, self.layout, self.rank, self.device)
            with torch.no_grad():
                self.optimizer.publish()

    def begin_rl(self) -> None:
        """Freeze the reference (the weights now, or `checkpoint.refLoad`), and start a new optimizer."""
        self._enter_rl()
        if self.reference is not None and self.spec.checkpoint.ref_load is None:
            with torch.no_grad():
                pairs = zip(self.model.module.parameters(), self.reference.parameters(), strict=True)
                for mine, frozen in pairs:
                    frozen.copy_(mine)

    def _enter_rl(self) -> None:
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
        exact = {master.name: master.weight.data.clone() for master in self.optimizer.master_weights()}
        self.optimizer = Optimizer(self.spec.optimizer, self.model, self.dtype)
        for master in self.optimizer.master_weights():
            master.weight.data.copy_(exact[master.name])
        for key, value in recompute_options(self.spec.trainer.recompute).items():
            setattr(self.model.module.config, key, value)

    def close(self) -> None:
        """Drop models and optimizer, then Megatron's groups."""
        for name in ("model", "reference", "optimizer"):
            self.__dict__.pop(name, None)
        gc.collect()
        parallel.stop()

    # -- steps --------------------------------------------------------------------------------------------------

    def forward_backward(
        self, rows: Sequence[Row], loss: StepLoss, *, temperature: float, entropy: EntropyMode
    ) -> dict[str, float]:
        """See `Backend`. The loss is taken on the last pipeline stage. Entropies come with the log-probabilities and
        cost nothing, whatever is wanted."""
        packs = self._packs(rows)
        references = None
        if self.reference is not None:
            references = passes.evaluate(self.reference, packs, temperature)

        def share(number: int, pack: Pack, logprobs: Tensor, entropies: Tensor) -> Tensor:
            return loss(pack.batch, logprobs, references[number] if references else None, entropies)

        self.model.zero_grad_buffer()
        self.optimizer.inner.zero_grad()
        passes.train(self.model, packs, temperature, share)
        last = self.coordinates.pipeline == self.layout.pipeline - 1
        return parallel.from_last_stage(loss.metrics() if last else {})

    def apply(self, step: OptimizerStep, loss: float) -> tuple[float, float]:
        """Clip and step, unless the loss or the gradient is not finite. Returns the norm before clipping and the lr."""
        norm = self.optimizer.grad_norm()
        if not finite(loss, norm):
            raise NonFiniteError(step.name, loss, norm, self.rank)
        lr = learning_rate(step.spec, step.number, step.total)
        self.optimizer.step(lr)
        return norm, lr

    def logprobs(self, rows: Sequence[Row], *, temperature: float) -> list[list[float]]:
        """Of every row's trained tokens, under the weights as they are; the same on all ranks of a share."""
        return self._logprobs(self.model, rows, temperature)

    def token_signals(self, rows: Sequence[Row], *, temperature: float) -> list[TokenSignals]:
        """The KL against the reference of each trained token (`kl.rewardCoef`), under the weights as they are."""
        spec = self.spec.algorithm.kl
        if not spec.reward_coef:
            return [TokenSignals() for _ in rows]
        assert self.reference is not None
        mine = self._logprobs(self.model, rows, temperature)
        theirs = self._logprobs(self.reference, rows, temperature)
        return [
            TokenSignals(kl_estimate(torch.tensor(own), torch.tensor(ref), spec.estimator).tolist())
            for own, ref in zip(mine, theirs, strict=True)
        ]

    # -- weights and state --------------------------------------------------------------------------------------

    def weights_layout(self) -> list[TensorInfo]:
        """Name, whole shape and dtype of every tensor that `gather_weights` gives, in its order."""
        dtype = str(self.dtype).removeprefix("torch.")
        return [TensorInfo(name, shape, dtype) for name, shape in hf_shapes(self.model.module.arch)]

    def gather_weights(self, names: Sequence[str] | None = None) -> Iterator[tuple[str, Tensor]]:
        """The named tensors (None: all) in `model.dtype`, whole, on this rank's device, in the order of
        `weights_layout`. Collective: all ranks ask for the same."""
        return hf_tensors(self.model.module, self.layout, self.coordinates, names)

    def hf_config(self) -> tuple[Any, str]:
        """transformers' config of the model, and the class that goes with it."""
        from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

        return self.config, MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[self.config.model_type]

    def state_writer(self, directory: str, *, copy: bool) -> Callable[[], list[FileEntry]]:
        """See `Backend`."""
        tensors = state_tensors(self._state(), self.layout, self.rank)
        return state_writer(directory, self.rank, about(self.layout, self.stage), tensors, self.device, copy=copy)

    def held(self) -> Iterator[Tensor]:
        """What this rank keeps from step to step: weights and gradients in Megatron's buffers, the reference's weights,
        the optimizer's float32 weights and states."""
        for buffer in (*self.model.buffers, *self.model.expert_parallel_buffers):
            yield from (tensor for tensor in (buffer.param_data, buffer.grad_data) if tensor is not None)
        yield from self.model.module.parameters()
        if self.reference is not None:
            yield from self.reference.parameters()
        for master in self.optimizer.master_weights():
            yield master.weight
            yield from (value for value in master.state.values() if isinstance(value, Tensor))

    # -- inside -------------------------------------------------------------------------------------------------

    def _state(self) -> MegatronState:
        reference = None
        if self.reference is not None:
            reference = dict(named_parameters(self.reference, self.layout, self.coordinates))
        return MegatronState(self.stage, list(self.optimizer.master_weights()), reference)

    def _new_policy(self) -> PolicyModel:
        arch = architecture_of(self.config)
        trainer, sft = self.spec.trainer, self.spec.sft
        options = model_options(arch, self.config, self.layout, dict(trainer.megatron_args))
        force = self.stage == "sft" and sft is not None and sft.gradient_checkpointing
        options |= recompute_options(trainer.recompute, force_full=force)
        return build_policy(options, arch, self.config, self.dtype)

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
        number = max(1, int(all_reduce(torch.tensor([len(cut)]), "max")))
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

    def _logprobs(self, model: Any, rows: Sequence[Row], temperature: float) -> list[list[float]]:
        result: list[list[float]] = [[] for _ in rows]
        packs = self._packs(rows)
        found = passes.evaluate(model, packs, temperature)
        for pack, logprobs in zip(packs, found, strict=False):
            pack.batch.put(result, logprobs)
        return parallel.from_last_stage(result)
