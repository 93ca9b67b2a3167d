"""What an engine's own process serves, told from within it.

SGLang calls `report_served` as a custom weight loader in the process that holds the weights. It loads nothing: it
reads what is asked for from a file and writes fingerprints of the served tensors beside it. SGLang fuses some tensors
(q, k, v; gate, up; the experts of a layer); fused ones are taken apart again, so that each is compared with what the
trainer sent.

Of several tensor-parallel ranks each tells where in the whole tensor its part begins; the parts' sums add up to the
whole's.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from rljob_trainer.weights.fingerprint import Entry, block_sums, entries, entry

Told = tuple[str, tuple[int, ...], tuple[int, ...], int]
"""What a rank tells of its part of a tensor: dtype, shape of the whole, where the part begins, its part of the sum."""

FUSED = {
    "q_proj": ("qkv_proj", 0),
    "k_proj": ("qkv_proj", 1),
    "v_proj": ("qkv_proj", 2),
    "gate_proj": ("gate_up_proj", 0),
    "up_proj": ("gate_up_proj", 1),
}
"""Hugging Face module name → SGLang's fused module and the place in it."""
EXPERTS = {"w13_weight": ("gate_proj.weight", "up_proj.weight"), "w2_weight": ("down_proj.weight",)}
"""SGLang's tensors of all experts of a layer, [experts, rows, columns], and what each expert's rows are in turn."""


def served_name(name: str) -> str:
    """Under which name `report_served` tells of the tensor that Hugging Face calls `name`."""
    *root, module, kind = name.split(".")
    if module not in FUSED or root[-2:-1] == ["experts"]:
        return name
    fused, place = FUSED[module]
    return ".".join((*root, fused, kind)) + f"#{place}"


def parts_of(model: Any) -> dict[str, torch.Tensor]:
    """The served tensors, fused ones in their parts (`name#0`, …; experts under Hugging Face's names), as views."""
    parts: dict[str, torch.Tensor] = {}
    for prefix, module in model.named_modules():
        sizes = getattr(module, "output_partition_sizes", None)
        for name, parameter in module.named_parameters(recurse=False):
            full = f"{prefix}.{name}" if prefix else name
            if name in EXPERTS and parameter.ndim == 3:
                for expert, rows in enumerate(parameter.data):
                    views = torch.chunk(rows, len(EXPERTS[name]))
                    parts.update({f"{prefix}.{expert}.{k}": view for k, view in zip(EXPERTS[name], views, strict=True)})
            elif sizes and len(sizes) > 1 and parameter.ndim and parameter.shape[0] == sum(sizes):
                views = torch.split(parameter.data, list(sizes))
                parts.update({f"{full}#{number}": view for number, view in enumerate(views)})
            else:
                parts[full] = parameter.data
    return parts


def place_of(part: Sequence[int], whole: Sequence[int], rank: int, ranks: int) -> tuple[list[int], int] | None:
    """Where in a tensor of shape `whole` the part of tensor-parallel rank `rank` begins, and how many of its rows
    belong to it: the rest pads a vocabulary. None: it is no part of such a tensor.

    A part is rows or columns. Where there are fewer heads of keys and values than ranks, neighbours hold the same ones.
    """
    if len(part) != len(whole):
        return None
    axes = [axis for axis, (mine, all_) in enumerate(zip(part, whole, strict=True)) if mine != all_]
    if not axes:
        return [0] * len(whole), whole[0] if whole else 1
    axis, start = axes[0], [0] * len(whole)
    covered, wanted = ranks * part[axis], whole[axis]
    copies = covered // wanted if covered % wanted == 0 else 1
    if len(axes) > 1 or covered < wanted or (axis > 0 and covered != wanted):
        return None
    start[axis] = rank // copies * part[axis]
    return start, part[0] if axis > 0 else max(0, min(part[0], wanted - start[0]))


def table_of(model: Any, shapes: Mapping[str, Sequence[int]], rank: int = 0, ranks: int = 1) -> dict[str, Told]:
    """What tensor-parallel rank `rank` tells of the served tensors that `shapes`, of whole ones, names."""
    parts = parts_of(model)
    places = {name: place_of(parts[name].shape, shapes[name], rank, ranks) for name in shapes if name in parts}
    mine = {
        name: parts[name] if place is None or not shapes[name] else parts[name][: place[1]]
        for name, place in places.items()
    }
    if ranks == 1:
        return {name: (*found[:2], (), found[2]) for name, found in entries(mine).items()}
    blocks = [_block(part, shapes[name], places[name]) for name, part in mine.items()]
    result: dict[str, Told] = {}
    for (name, part), total in zip(mine.items(), block_sums(blocks).tolist(), strict=True):
        place = places[name]
        shape, start = (tuple(part.shape), ()) if place is None else (tuple(shapes[name]), tuple(place[0]))
        result[name] = entry(part, 0)[0], shape, start, total
    return result


def _block(
    part: torch.Tensor, shape: Sequence[int], place: tuple[list[int], int] | None
) -> tuple[torch.Tensor, Sequence[int], Sequence[int]]:
    return (part, part.shape, [0] * part.ndim) if place is None else (part, shape, place[0])


def read_told(text: str) -> dict[str, Told]:
    """What a rank has written."""
    return {
        name: (str(dtype), tuple(shape), tuple(start), int(total))
        for name, (dtype, shape, start, total) in json.loads(text).items()
    }


def whole(tables: Sequence[Mapping[str, Told]]) -> dict[str, Entry]:
    """Entries of the whole tensors, from what each rank told. Raises ValueError for one of which ranks tell different
    things that should be the same."""
    result: dict[str, Entry] = {}
    for name in tables[0]:
        told = [table[name] for table in tables if name in table]
        parts: dict[tuple[int, ...], int] = {}
        for dtype, shape, start, total in told:
            if (dtype, shape) != told[0][:2] or parts.setdefault(start, total) != total:
                raise ValueError(f"the GPUs of one engine serve different {name}")
        result[name] = (told[0][0], told[0][1], _wrapped(sum(parts.values())))
    return result


def _wrapped(value: int) -> int:
    """Modulo 2⁶⁴, as int64 has it."""
    return (value + (1 << 63)) % (1 << 64) - (1 << 63)


def quiet_release() -> None:
    """Let this process wait for its GPU before memory is given back.

    SGLang gives memory back while kernels may still read it: where another process keeps the GPU busy they come late,
    and find it gone.
    """
    try:
        from torch_memory_saver import torch_memory_saver as saver
    except ImportError:
        return
    pause = saver.pause
    if getattr(pause, "waits", False):
        return

    def after_the_gpu(tag: str | None = None) -> None:
        torch.cuda.synchronize()
        pause(tag=tag)

    after_the_gpu.waits = True  # type: ignore[attr-defined]
    saver.pause = after_the_gpu


def report_served(model: Any, named_tensors: Sequence[tuple[str, Any]]) -> None:
    """For each name, a path: read the shapes asked for there, write the entries to `<path>.<rank>`."""
    quiet_release()
    distributed = torch.distributed
    several = distributed.is_available() and distributed.is_initialized()
    rank, ranks = (distributed.get_rank(), distributed.get_world_size()) if several else (0, 1)
    for path, _ in named_tensors:
        shapes = json.loads(Path(path).read_text(encoding="utf-8"))
        answer = Path(f"{path}.{rank}")
        partial = answer.with_name(f"{answer.name}.partial")
        partial.write_text(json.dumps(table_of(model, shapes, rank, ranks)), encoding="utf-8")
        partial.replace(answer)
