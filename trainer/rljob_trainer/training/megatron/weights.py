"""Weights into and out of a Megatron model whose tensors are shared out over ranks."""

from collections.abc import Callable, Collection, Iterator

import torch
import torch.distributed as dist
from megatron.core import parallel_state
from rljob_api.errors import UserError
from torch import Tensor, nn

from rljob_trainer.export.architecture import Architecture
from rljob_trainer.export.layout import resize_rows
from rljob_trainer.export.mapping import Entry, canonical_name, cut_vocab, entries
from rljob_trainer.training.megatron.layout import Coordinates, Layout, join, slice_of
from rljob_trainer.training.megatron.model import PolicyModel, vocab_rows


def named_parameters(
    model: PolicyModel, layout: Layout, coordinates: Coordinates
) -> Iterator[tuple[str, nn.Parameter]]:
    """Parameters of this rank under canonical names. The last stage's copy of a tied embedding comes under the
    embedding's name; several expert ranks hold experts of different names."""
    arch = model.arch
    layers = coordinates.pipeline * (arch.layers // layout.pipeline)
    experts = parallel_state.get_expert_model_parallel_rank() * (arch.experts // layout.expert) if arch.experts else 0
    for name, parameter in model.named_parameters():
        name = canonical_name(arch, name, layer_offset=layers, expert_offset=experts)
        if arch.tied and name == "output_layer.weight":
            name = "embedding.word_embeddings.weight"
        yield name, parameter


@torch.no_grad()
def load_weights(
    model: PolicyModel, layout: Layout, coordinates: Coordinates, whole_of: Callable[[Entry], Tensor]
) -> None:
    """Set this rank's parameters. whole_of: a whole tensor of Megatron's; only those that this rank holds a part of
    are asked for."""
    known = {entry.name: entry for entry in entries(model.arch)}
    for name, parameter in named_parameters(model, layout, coordinates):
        entry = known[name]
        whole = whole_of(entry)
        if entry.kind == "vocab":
            rows = vocab_rows(model.arch.vocab, layout.tensor)
            whole = resize_rows(cut_vocab(whole, model.arch.vocab, name), rows)
        part = slice_of(entry, whole, coordinates.tensor, layout.tensor)
        if part.shape != parameter.shape:
            raise UserError(
                f"the checkpoint's {name} has a slice of shape {tuple(part.shape)}, the model needs "
                f"{tuple(parameter.shape)}: config and checkpoint do not belong together"
            )
        parameter.copy_(part)


def hf_shapes(arch: Architecture) -> list[tuple[str, tuple[int, ...]]]:
    """Names and shapes of what `hf_tensors` gives, in its order."""
    return [
        (name, tuple(part.shape))
        for entry in entries(arch)
        for name, part in entry.split(arch, torch.empty(entry.shape(arch), device="meta"))
    ]


@torch.no_grad()
def hf_tensors(
    model: PolicyModel, layout: Layout, coordinates: Coordinates, names: Collection[str] | None = None
) -> Iterator[tuple[str, Tensor]]:
    """Weights, whole, under their Hugging Face names, on every rank's GPU, in the order of `hf_shapes`; `names`: these
    alone. Collective: all ranks ask for the same. One tensor of Megatron's at a time is put together.
    """
    wanted = None if names is None else set(names)
    arch = model.arch
    mine = dict(named_parameters(model, layout, coordinates))
    tensor_group = parallel_state.get_tensor_model_parallel_group()
    stage_group = parallel_state.get_pipeline_model_parallel_group()
    expert_group = parallel_state.get_expert_model_parallel_group()
    expert_rank = parallel_state.get_expert_model_parallel_rank()
    per_stage = arch.layers // layout.pipeline
    device = next(iter(mine.values())).device
    dtype = next(iter(mine.values())).dtype
    for entry in entries(arch):
        if wanted is not None and wanted.isdisjoint(entry.hf_names):
            continue
        stage = _stage(entry.name, per_stage, layout.pipeline)
        owner = _expert(entry.name)
        holder = 0 if owner is None else owner // (arch.experts // layout.expert)
        shape = _slice_shape(model, layout, entry)
        part = torch.empty(shape, dtype=dtype, device=device)
        if coordinates.pipeline == stage and (owner is None or expert_rank == holder):
            part.copy_(mine[entry.name])
        if owner is not None and layout.expert > 1 and coordinates.pipeline == stage:
            dist.broadcast(part, group=expert_group, group_src=holder)
        if layout.pipeline > 1:
            dist.broadcast(part, group=stage_group, group_src=stage)
        parts = [part]
        if layout.tensor > 1:
            parts = [torch.empty_like(part) for _ in range(layout.tensor)]
            dist.all_gather(parts, part, group=tensor_group)
        whole = join(entry, parts)
        if entry.kind == "vocab":
            whole = whole[: arch.vocab]
        for name, tensor in entry.split(arch, whole):
            if wanted is None or name in wanted:
                yield name, tensor


def _slice_shape(model: PolicyModel, layout: Layout, entry: Entry) -> tuple[int, ...]:
    rows = vocab_rows(model.arch.vocab, layout.tensor)
    whole = torch.empty(entry.shape(model.arch, rows), device="meta")
    return tuple(slice_of(entry, whole, 0, layout.tensor).shape)


def _stage(name: str, layers_per_stage: int, stages: int) -> int:
    """The pipeline stage that holds a tensor."""
    if name.startswith("decoder.layers."):
        return int(name.split(".")[2]) // layers_per_stage
    return 0 if name.startswith("embedding.") else stages - 1


def _expert(name: str) -> int | None:
    """The number of the expert that a tensor belongs to."""
    return int(name.split("local_experts.")[1].split(".")[0]) if "local_experts." in name else None
