"""Where a tensor lies in Megatron's distributed checkpoint: under which key, and at which place of a stack.

By default a checkpoint stacks what all layers have: `decoder.layers.mlp.linear_fc2.weight` has one axis more than the
layer's tensor, the layer's number; experts have two more (`TransformerBlock.sharded_state_dict` and
`SequentialMLP.sharded_state_dict` of megatron-core 0.19). Models whose layers differ have the number in the key.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass

from rljob_trainer.export.architecture import Architecture

_LAYER = re.compile(r"^decoder\.layers\.(\d+)\.(.*)$")
_EXPERT = re.compile(r"^mlp\.experts\.local_experts\.(\d+)\.(.*)$")
_STATEFUL = ("self_attention.linear_qkv", "self_attention.linear_proj", "self_attention.core_attention")


@dataclass(frozen=True, slots=True)
class Place:
    """`index` within the leading axes of sizes `counts` of the tensor `key`; both empty for a tensor by itself."""

    key: str
    index: tuple[int, ...] = ()
    counts: tuple[int, ...] = ()


def place_of(arch: Architecture, name: str, *, stacked: bool) -> Place:
    """Where the tensor with a canonical name lies, in a checkpoint with stacked layers or with numbered ones."""
    found = _LAYER.match(name)
    if found is None:
        return Place(name)
    layer, rest = int(found[1]), found[2]
    prefix = "decoder.layers." if stacked else f"decoder.layers.{layer}."
    index, counts = ((layer,), (arch.layers,)) if stacked else ((), ())
    if expert := _EXPERT.match(rest):
        return Place(f"{prefix}mlp.experts.experts.{expert[2]}", (*index, int(expert[1])), (*counts, arch.experts))
    return Place(f"{prefix}{rest}", index, counts)


def candidates(arch: Architecture, name: str) -> Iterator[Place]:
    """All places where a checkpoint of Megatron's may have the tensor, most usual first."""
    for stacked in (True, False):
        yield place_of(arch, name, stacked=stacked)
        if alias := alias_of(name):
            yield place_of(arch, alias, stacked=stacked)


def alias_of(name: str) -> str | None:
    """Under which name models of the local layer spec store a sparse layer's second norm; the others keep its own."""
    if name.endswith(".pre_mlp_layernorm.weight"):
        return name.replace(".pre_mlp_layernorm.weight", ".mlp.linear_fc1.layer_norm_weight")
    return None


def extra_states(arch: Architecture, *, stacked: bool) -> Iterator[str]:
    """Keys of the `_extra_state` objects that linear layers and norms ask for when they load; all are empty."""
    for layer in range(arch.layers):
        modules = [*_STATEFUL, *(("self_attention.q_layernorm", "self_attention.k_layernorm") if arch.qk_norm else ())]
        if not arch.is_sparse(layer):
            modules += ["mlp.linear_fc1", "mlp.linear_fc2"]
        else:
            modules += ["pre_mlp_layernorm"]
            for expert in range(arch.experts):
                modules += [f"mlp.experts.local_experts.{expert}.linear_fc{number}" for number in (1, 2)]
        for module in modules:
            yield _object_key(place_of(arch, f"decoder.layers.{layer}.{module}._extra_state", stacked=stacked))
    yield _object_key(Place("decoder.final_layernorm._extra_state"))


def _object_key(place: Place) -> str:
    """`ShardedObject.unique_key` of megatron-core."""
    offset, shape = place.index or (0,), place.counts or (1,)
    return f"{place.key}/shard_{'.'.join(map(str, offset))}_{'.'.join(map(str, shape))}"
