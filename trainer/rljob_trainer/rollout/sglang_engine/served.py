"""What an engine's own process serves, told from within it.

SGLang calls `report_served` as a custom weight loader in the process that holds the weights. It loads nothing: it
reads what is asked for from a file and writes fingerprints of the served tensors beside it. SGLang fuses some tensors
(q, k, v; gate, up); fused ones are taken apart again, so that each is compared with what the trainer sent.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from rljob_trainer.weights.fingerprint import Entry, entries

FUSED = {
    "q_proj": ("qkv_proj", 0),
    "k_proj": ("qkv_proj", 1),
    "v_proj": ("qkv_proj", 2),
    "gate_proj": ("gate_up_proj", 0),
    "up_proj": ("gate_up_proj", 1),
}
"""Hugging Face module name → SGLang's fused module and the place in it."""


def served_name(name: str) -> str:
    """Under which name `report_served` tells of the tensor that Hugging Face calls `name`."""
    *root, module, kind = name.split(".")
    if module not in FUSED:
        return name
    fused, place = FUSED[module]
    return ".".join((*root, fused, kind)) + f"#{place}"


def parts_of(model: Any) -> dict[str, torch.Tensor]:
    """The served tensors, fused ones in their parts (`name#0`, …), as views."""
    parts: dict[str, torch.Tensor] = {}
    for prefix, module in model.named_modules():
        sizes = getattr(module, "output_partition_sizes", None)
        for name, parameter in module.named_parameters(recurse=False):
            full = f"{prefix}.{name}" if prefix else name
            if sizes and len(sizes) > 1 and parameter.ndim and parameter.shape[0] == sum(sizes):
                views = torch.split(parameter.data, list(sizes))
                parts.update({f"{full}#{number}": view for number, view in enumerate(views)})
            else:
                parts[full] = parameter.data
    return parts


def table_of(model: Any, shapes: Mapping[str, Sequence[int]]) -> dict[str, Entry]:
    """Entries of the served tensors that `shapes` names. Rows that SGLang pads a vocabulary with are left out."""
    parts = parts_of(model)
    wanted = {}
    for name, shape in shapes.items():
        if name in parts:
            tensor = parts[name]
            padded = tensor.ndim == len(shape) and tensor.ndim > 0 and tensor.shape[0] > shape[0]
            wanted[name] = tensor[: shape[0]] if padded and list(tensor.shape[1:]) == list(shape[1:]) else tensor
    return entries(wanted)


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
    rank = distributed.get_rank() if distributed.is_available() and distributed.is_initialized() else 0
    for path, _ in named_tensors:
        shapes = json.loads(Path(path).read_text(encoding="utf-8"))
        answer = Path(f"{path}.{rank}")
        partial = answer.with_suffix(".partial")
        partial.write_text(json.dumps(table_of(model, shapes)), encoding="utf-8")
        partial.replace(answer)
