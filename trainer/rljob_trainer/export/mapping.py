"""Which tensors of Megatron's GPTModel are made of which of the Hugging Face model, one by one or all at once.

Names on Megatron's side are those of its distributed checkpoints (and of the Transformer Engine layer spec), with the
layer's number, and experts as `mlp.experts.local_experts.<e>`. `canonical_name` takes the names of a live model of any
layer spec, on any pipeline or expert rank, to these.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from rljob_api.errors import UserError
from torch import Tensor

from rljob_trainer.export.architecture import Architecture, architecture_of
from rljob_trainer.export.layout import fuse_gate_up, fuse_qkv, resize_rows, split_gate_up, split_qkv

Kind = Literal["copy", "qkv", "gate_up", "vocab"]
"""How the tensors relate: one to one; fused by query groups; gate over up; one to one but for padding rows."""

_FUSED_EXPERTS = re.compile(r"^(model\.layers\.\d+\.mlp\.experts)\.(gate_up_proj|down_proj)$")


@dataclass(frozen=True, slots=True)
class Entry:
    """One tensor of Megatron's, and what it is made of."""

    name: str
    hf_names: tuple[str, ...]
    kind: Kind = "copy"

    def fuse(self, arch: Architecture, parts: list[Tensor]) -> Tensor:
        """Megatron's tensor of the Hugging Face tensors `hf_names`, whole (unsharded); the vocabulary is not padded."""
        if self.kind == "qkv":
            return fuse_qkv(arch, *parts)
        return fuse_gate_up(*parts) if self.kind == "gate_up" else parts[0]

    def split(self, arch: Architecture, tensor: Tensor) -> list[tuple[str, Tensor]]:
        """The Hugging Face tensors of a whole one of Megatron's; the vocabulary is not cut."""
        parts: tuple[Tensor, ...] = (tensor,)
        if self.kind == "qkv":
            parts = split_qkv(arch, tensor)
        elif self.kind == "gate_up":
            parts = split_gate_up(tensor)
        return list(zip(self.hf_names, parts, strict=True))

    def shape(self, arch: Architecture, vocab: int | None = None) -> tuple[int, ...]:
        """Shape of Megatron's tensor, whole; `vocab` rows in embedding and output layer."""
        tail = self.name.rsplit("layers.", 1)[-1].partition(".")[2] if ".layers." in self.name else self.name
        if self.kind == "vocab":
            return (vocab or arch.vocab, arch.hidden)
        if self.kind == "qkv":
            return (arch.qkv_rows,) if tail.endswith("bias") else (arch.qkv_rows, arch.hidden)
        ffn = arch.expert_ffn if ".experts." in tail else arch.ffn
        if self.kind == "gate_up":
            return (2 * ffn, arch.hidden)
        if tail.endswith("linear_fc2.weight"):
            return (arch.hidden, ffn)
        if tail.endswith("linear_proj.weight"):
            return (arch.hidden, arch.heads * arch.head_dim)
        if tail.endswith("router.weight"):
            return (arch.experts, arch.hidden)
        return (arch.head_dim,) if tail.endswith(("q_layernorm.weight", "k_layernorm.weight")) else (arch.hidden,)


def entries(arch: Architecture) -> Iterator[Entry]:
    """All tensors of the model, from the embedding to the output layer."""
    yield Entry("embedding.word_embeddings.weight", ("model.embed_tokens.weight",), "vocab")
    for layer in range(arch.layers):
        yield from layer_entries(arch, layer)
    yield Entry("decoder.final_layernorm.weight", ("model.norm.weight",))
    if not arch.tied:
        yield Entry("output_layer.weight", ("lm_head.weight",), "vocab")


def layer_entries(arch: Architecture, layer: int) -> Iterator[Entry]:
    """The tensors of one layer, counted from 0 over all pipeline stages."""
    mine, theirs = f"decoder.layers.{layer}", f"model.layers.{layer}"
    attention = f"{mine}.self_attention"
    yield Entry(f"{attention}.linear_qkv.layer_norm_weight", (f"{theirs}.input_layernorm.weight",))
    for part in ("weight", "bias") if arch.qkv_bias else ("weight",):
        yield Entry(
            f"{attention}.linear_qkv.{part}", tuple(f"{theirs}.self_attn.{which}_proj.{part}" for which in "qkv"), "qkv"
        )
    if arch.qk_norm:
        for which in "qk":
            yield Entry(f"{attention}.{which}_layernorm.weight", (f"{theirs}.self_attn.{which}_norm.weight",))
    yield Entry(f"{attention}.linear_proj.weight", (f"{theirs}.self_attn.o_proj.weight",))
    after = f"{theirs}.post_attention_layernorm.weight"
    if not arch.is_sparse(layer):
        yield Entry(f"{mine}.mlp.linear_fc1.layer_norm_weight", (after,))
        yield from _mlp(f"{mine}.mlp", f"{theirs}.mlp")
        return
    yield Entry(f"{mine}.pre_mlp_layernorm.weight", (after,))
    yield Entry(f"{mine}.mlp.router.weight", (f"{theirs}.mlp.gate.weight",))
    for expert in range(arch.experts):
        yield from _mlp(f"{mine}.mlp.experts.local_experts.{expert}", f"{theirs}.mlp.experts.{expert}")


def _mlp(mine: str, theirs: str) -> Iterator[Entry]:
    yield Entry(f"{mine}.linear_fc1.weight", (f"{theirs}.gate_proj.weight", f"{theirs}.up_proj.weight"), "gate_up")
    yield Entry(f"{mine}.linear_fc2.weight", (f"{theirs}.down_proj.weight",))


def canonical_name(arch: Architecture, name: str, *, layer_offset: int = 0, expert_offset: int = 0) -> str:
    """The name used here for a parameter of a live GPTModel.

    Knows wrappers (`module.`), the local layer spec's norms, grouped experts (`linear_fc1.weight3`) and sequential
    ones. `layer_offset`: layers on earlier pipeline stages; `expert_offset`: experts on earlier expert ranks.
    """
    while name.startswith("module."):
        name = name.removeprefix("module.")
    found = re.match(r"^decoder\.layers\.(\d+)\.(.*)$", name)
    if found is None:
        return name
    layer, rest = int(found[1]) + layer_offset, found[2]
    if rest == "input_layernorm.weight":
        rest = "self_attention.linear_qkv.layer_norm_weight"
    elif rest in ("pre_mlp_layernorm.weight", "mlp.linear_fc1.layer_norm_weight"):
        rest = "pre_mlp_layernorm.weight" if arch.is_sparse(layer) else "mlp.linear_fc1.layer_norm_weight"
    elif expert := re.match(r"^mlp\.experts\.(linear_fc[12])\.weight(\d+)$", rest):
        rest = f"mlp.experts.local_experts.{int(expert[2]) + expert_offset}.{expert[1]}.weight"
    elif expert := re.match(r"^mlp\.experts\.local_experts\.(\d+)\.(.*)$", rest):
        rest = f"mlp.experts.local_experts.{int(expert[1]) + expert_offset}.{expert[2]}"
    return f"decoder.layers.{layer}.{rest}"


def stream_to_megatron(arch: Architecture, get: Callable[[str], Tensor]) -> Iterator[tuple[str, Tensor]]:
    """Megatron's tensors one after the other; `get` fetches a Hugging Face tensor by name. Nothing is padded."""
    for entry in entries(arch):
        yield entry.name, entry.fuse(arch, [get(name) for name in entry.hf_names])


def stream_to_hf(
    arch: Architecture, tensors: Iterator[tuple[str, Tensor]], *, vocab_size: int | None = None
) -> Iterator[tuple[str, Tensor]]:
    """Hugging Face tensors of whole Megatron tensors, in whatever order they come; padding rows are cut off.

    vocab_size: rows of the embedding on the Hugging Face side, by default the config's. Raises UserError for a tensor
    that the architecture does not have, or that has another shape.
    """
    known = {entry.name: entry for entry in entries(arch)}
    for name, tensor in tensors:
        entry = known.get(name)
        if entry is None:
            raise UserError(f"the {arch.model_type} model has no tensor {name!r}: this is another model's checkpoint")
        if entry.kind == "vocab":
            tensor = cut_vocab(tensor, vocab_size or arch.vocab, name)
        elif tuple(tensor.shape) != entry.shape(arch):
            raise UserError(
                f"{name} has shape {tuple(tensor.shape)}, the config asks for {entry.shape(arch)}: "
                "config and checkpoint do not belong together"
            )
        yield from entry.split(arch, tensor)


def cut_vocab(tensor: Tensor, vocab: int, name: str) -> Tensor:
    """The first `vocab` rows. Raises UserError when there are fewer."""
    if tensor.shape[0] < vocab:
        raise UserError(
            f"{name} has {tensor.shape[0]} rows, fewer than the vocabulary of {vocab}",
            hint="give the number of rows that the model was trained with (--vocab-size)",
        )
    return tensor[:vocab]


def hf_to_megatron(
    config: Any, state: Mapping[str, Tensor], *, padded_vocab_size: int | None = None
) -> dict[str, Tensor]:
    """All of Megatron's tensors, whole, under canonical names.

    config: transformers config, dict of a config.json, or Architecture. state: Hugging Face tensors by name; experts
    may be fused as transformers 5 holds them in memory. padded_vocab_size: rows of embedding and output layer
    (`layout.padded_vocab`). Raises UserError for a tensor that is missing.
    """
    arch = config if isinstance(config, Architecture) else architecture_of(config)
    state = unfuse_experts(state)

    def get(name: str) -> Tensor:
        if name not in state:
            raise UserError(f"the {arch.model_type} model's tensor {name!r} is missing")
        return state[name]

    result = dict(stream_to_megatron(arch, get))
    if padded_vocab_size is not None:
        for entry in entries(arch):
            if entry.kind == "vocab":
                result[entry.name] = resize_rows(result[entry.name], padded_vocab_size)
    return result


def megatron_to_hf(config: Any, state: Mapping[str, Tensor], *, vocab_size: int | None = None) -> dict[str, Tensor]:
    """All Hugging Face tensors of whole Megatron tensors under canonical names; the inverse of `hf_to_megatron`."""
    arch = config if isinstance(config, Architecture) else architecture_of(config)
    missing = [entry.name for entry in entries(arch) if entry.name not in state]
    if missing:
        raise UserError(f"the {arch.model_type} model's tensor {missing[0]!r} is missing ({len(missing)} in all)")
    return dict(stream_to_hf(arch, iter(state.items()), vocab_size=vocab_size))


def unfuse_experts(state: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """Experts one by one, where `state` has them as transformers 5 holds them: `experts.gate_up_proj`
    [experts, 2 * ffn, hidden] and `experts.down_proj` [experts, hidden, ffn]. Views, no copies."""
    if not any(_FUSED_EXPERTS.match(name) for name in state):
        return state
    result: dict[str, Tensor] = {}
    for name, tensor in state.items():
        found = _FUSED_EXPERTS.match(name)
        if found is None:
            result[name] = tensor
            continue
        for expert, part in enumerate(torch.unbind(tensor)):
            if found[2] == "down_proj":
                result[f"{found[1]}.{expert}.down_proj.weight"] = part
            else:
                gate, up = split_gate_up(part)
                result[f"{found[1]}.{expert}.gate_proj.weight"] = gate
                result[f"{found[1]}.{expert}.up_proj.weight"] = up
    return result
