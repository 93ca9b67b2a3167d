"""Policies, references and critics as the `fsdp` backend trains them: built, sharded over ranks, and filled with the
weights that a new model gets. Each rank reads its own rows alone, whatever they are stored as."""

import logging
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import torch
import torch.distributed as dist
from rljob_api.errors import UserError
from rljob_api.v1alpha1.job import RLJobSpec
from rljob_api.v1alpha1.model import ModelSpec
from torch import Tensor, nn

from rljob_trainer.models import build_model
from rljob_trainer.models.build import weights_folder
from rljob_trainer.models.meta import materialize, to_device
from rljob_trainer.models.paths import resolve
from rljob_trainer.models.sources import WeightSource
from rljob_trainer.models.start import Found, find_weights, starting_weights, warm_commit
from rljob_trainer.models.tokenizer import is_hub_id
from rljob_trainer.training.fsdp.critic import Critic
from rljob_trainer.training.fsdp.fused_layers import use_fused_layers
from rljob_trainer.training.fsdp.packed_attention import use_packed_attention
from rljob_trainer.training.fsdp.policy import Policy
from rljob_trainer.training.fsdp.shards import local, own_rows, parameters, recompute_blocks, shard_policy
from rljob_trainer.training.fsdp.state import stage_of
from rljob_trainer.training.vocab import LOGITS

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Initial:
    """What a model is made of."""

    model: ModelSpec
    """Where its config comes from."""
    weights: Found | None
    """Where its weights come from; None: random ones, from the job's seed."""


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


def actor_weights(spec: RLJobSpec, job_dir: str | Path) -> Initial:
    """For the policy: see `models.start`. Raises UserError."""
    found = starting_weights(spec, job_dir)
    if found is None:
        folder = weights_folder(spec.model, job_dir)
        found = None if folder is None else Found("hf", folder)
    if found is not None:
        logger.info("weights from %s (%s)", found.path, found.kind)
    return Initial(spec.model, found)


def reference_weights(spec: RLJobSpec, job_dir: str | Path) -> Initial | None:
    """For the reference, of `checkpoint.refLoad`; None: the policy's, later. A Hugging Face folder brings its own
    config, so that the reference may be another model. Raises UserError."""
    path = spec.checkpoint.ref_load
    if path is None:
        return None
    own = spec.model.model_copy(update={"path": path, "random_init": None})
    if not resolve(job_dir, path).is_dir() and is_hub_id(path):
        folder = weights_folder(own, job_dir)
        assert folder is not None
        return Initial(own, Found("hf", folder))
    found = find_weights(resolve(job_dir, path), "spec.checkpoint.refLoad")
    if found is None:
        raise UserError(f"spec.checkpoint.refLoad: {path!r} is not there, or empty")
    return Initial(own if found.kind == "hf" else spec.model, found)


def warm_optimizer(spec: RLJobSpec, job_dir: str | Path) -> tuple[str, Path]:
    """Stage and folder of the commit whose optimizer states a warm start takes over. Raises UserError when this job
    does not begin with that stage."""
    assert spec.checkpoint.warm_start is not None
    commit = warm_commit(spec.checkpoint.warm_start, job_dir)
    stage, first = stage_of(commit.path), "sft" if spec.sft is not None else "rl"
    if stage != first:
        words = {"sft": "supervised fine-tuning", "rl": "reinforcement learning"}
        raise UserError(
            f"spec.checkpoint.warmStart.optimizer: {commit.name} is of {words[stage]}, this job begins with "
            f"{words[first]}: the states of its optimizer mean nothing here",
            hint="set optimizer: false",
        )
    return stage, commit.path


@torch.no_grad()
def fill(module: nn.Module, initial: Initial, tokenizer: Any, job_dir: Path, rows_of: tuple[int, int]) -> None:
    """Put the weights into `module`, sharded or not. rows_of: rank and number of ranks of a sharded one, else (0, 1).

    Raises UserError when they are another model's.
    """
    if initial.weights is None:
        return
    named = list(parameters(module))
    model: Any = module.hf
    with _source(initial, initial.weights, [name for name, _ in named], model.config, tokenizer, job_dir) as source:
        for name, parameter in named:
            target = local(parameter)
            start, stop = own_rows(parameter.shape[0], *rows_of)
            rows, length = source.rows(name, start, stop), source.length(name)
            if rows.shape != target.shape or length not in (None, parameter.shape[0]):
                there = (length or rows.shape[0], *rows.shape[1:])
                raise UserError(
                    f"{initial.weights.path}: {name} has shape {there}, the model needs {tuple(parameter.shape)}"
                )
            target.copy_(rows)


@contextmanager
def _source(
    initial: Initial, found: Found, names: list[str], config: Any, tokenizer: Any, job_dir: Path
) -> Iterator[WeightSource]:
    """Row by row where the folder has the model's names; else (old formats and names) as transformers loads it."""
    if found.kind != "hf" or any(found.path.glob("*.safetensors")):
        with found.open(config) as source:
            missing = source.lacks(names)
            if not missing:
                yield source
                return
            if found.kind != "hf":
                raise UserError(f"{found.path} has no tensor {missing[0]!r}: it was made with another model")
    logger.warning("%s is loaded whole, on every rank: its tensors have other names than the model's", found.path)
    spec = initial.model.model_copy(update={"path": str(found.path), "random_init": None})
    model = build_model(spec, job_dir, tokenizer, dtype=torch.float32)
    yield _Whole(dict(model.named_parameters()))


class _Whole:
    """Tensors in memory."""

    def __init__(self, tensors: dict[str, Tensor]) -> None:
        self._tensors = tensors

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._tensors = {}

    def lacks(self, names: Iterable[str]) -> list[str]:
        return [name for name in names if name not in self._tensors]

    def length(self, name: str) -> int | None:
        return self._tensors[name].shape[0]

    def rows(self, name: str, start: int, stop: int) -> Tensor:
        return self._tensors[name][start:stop]
