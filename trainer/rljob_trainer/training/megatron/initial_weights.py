"""Where the first weights come from: a Hugging Face checkpoint, a Megatron one (`rljob convert`), or drawn."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from rljob_api.errors import UserError
from rljob_api.v1alpha1.checkpoint import CheckpointSpec
from rljob_api.v1alpha1.model import ModelSpec
from torch import Tensor

from rljob_trainer.export.architecture import Architecture
from rljob_trainer.export.hf_folder import INDEX, SINGLE, HfFolder
from rljob_trainer.export.mapping import Entry, unfuse_experts
from rljob_trainer.export.run import is_torch_dist
from rljob_trainer.export.torch_dist import CheckpointReader
from rljob_trainer.models.build import build_model
from rljob_trainer.models.paths import resolve

Whole = Callable[[Entry], Tensor]
"""Gives a whole tensor of Megatron's, the vocabulary not padded (or padded in any way)."""


def actor_path(checkpoint: CheckpointSpec, job_dir: str | Path) -> str | None:
    """Where the policy's weights lie: `load`, or, while that folder is missing or empty, `refLoad`; None: those of
    `spec.model`."""
    if checkpoint.load is None:
        return None
    folder = resolve(job_dir, checkpoint.load)
    return checkpoint.load if folder.is_dir() and any(folder.iterdir()) else checkpoint.ref_load


@contextmanager
def open_weights(
    spec: ModelSpec, job_dir: str | Path, tokenizer: Any, arch: Architecture, *, seed: int, path: str | None = None
) -> Iterator[Whole]:
    """Weights of `spec.model`, or of the checkpoint at `path`. Folders are read tensor by tensor, so that a rank reads
    what it holds a part of and keeps no second copy."""
    if path is not None:
        spec = spec.model_copy(update={"path": path, "random_init": None})
    folder = resolve(job_dir, spec.path) if spec.path is not None and spec.random_init is None else None
    if folder is not None and folder.is_dir() and is_torch_dist(folder):
        reader = CheckpointReader(folder, arch)
        yield lambda entry: reader.get(entry.name)
    elif folder is not None and any((folder / name).is_file() for name in (SINGLE, INDEX)):
        with HfFolder(folder) as files:
            yield lambda entry: entry.fuse(arch, [files.get(name) for name in entry.hf_names])
    else:
        model = build_model(spec, job_dir, tokenizer, seed=seed, dtype=torch.float32)
        state = unfuse_experts(dict(model.named_parameters()))

        def whole(entry: Entry) -> Tensor:
            missing = [name for name in entry.hf_names if name not in state]
            if missing:
                raise UserError(f"spec.model: the {arch.model_type} checkpoint has no tensor {missing[0]!r}")
            return entry.fuse(arch, [state[name] for name in entry.hf_names])

        yield whole
