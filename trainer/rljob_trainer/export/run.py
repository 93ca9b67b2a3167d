"""Conversion of whole models between folders; the target appears whole or not at all."""

import json
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from rljob_api.errors import UserError
from torch import Tensor

from rljob_trainer.atomic_files import replaced_folder
from rljob_trainer.export.architecture import Architecture, architecture_of
from rljob_trainer.export.hf_folder import HfFolder, HfWriter, copy_side_files, read_config
from rljob_trainer.export.layout import padded_vocab, resize_rows
from rljob_trainer.export.mapping import Entry, entries, stream_to_hf
from rljob_trainer.export.torch_dist import LATEST, CheckpointReader, Progress, checkpoint_folder, write_checkpoint

HF_SIDE = "hf"
"""Folder within a converted checkpoint that keeps config and tokenizer for the way back."""


@dataclass(frozen=True, slots=True)
class Converted:
    """What was written."""

    target: Path
    architecture: str
    tensors: int
    vocab: int
    """Rows of the embedding in the target."""


def hf_to_torch_dist(
    source: Path,
    target: Path,
    *,
    vocab_size: int | None = None,
    divisible_by: int = 128,
    tensor_parallel: int = 1,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Converted:
    """Convert a Hugging Face folder to a Megatron checkpoint.

    The embedding gets `layout.padded_vocab` rows of `vocab_size` (by default the config's). Weights keep their dtype.
    Raises UserError: unknown architecture, missing files or tensors, tensors that would be lost, a target in use.
    """
    arch = architecture_of(read_config(source))
    rows = padded_vocab(vocab_size or arch.vocab, divisible_by, tensor_parallel)
    if rows < arch.vocab:
        raise UserError(f"--vocab-size {vocab_size} is less than the config's vocab_size {arch.vocab}")
    with HfFolder(source) as folder, _new_folder(target, overwrite=overwrite) as fresh:
        _refuse_surplus(arch, folder)

        def make(entry: Entry) -> Tensor:
            tensor = entry.fuse(arch, [folder.get(name) for name in entry.hf_names])
            if tuple(tensor.shape) != entry.shape(arch):
                raise UserError(f"{source}: {entry.hf_names[0]} does not have the shape that config.json asks for")
            return resize_rows(tensor, rows) if entry.kind == "vocab" else tensor

        def dtype_of(entry: Entry) -> torch.dtype:
            return folder.dtype(entry.hf_names[0])

        write_checkpoint(fresh, arch, make, dtype_of, padded_vocab_size=rows, progress=progress)
        copy_side_files(source, fresh / HF_SIDE)
    return Converted(target, arch.model_type, sum(1 for _ in entries(arch)), rows)


def torch_dist_to_hf(
    source: Path,
    target: Path,
    *,
    hf_config: Path | None = None,
    vocab_size: int | None = None,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Converted:
    """Convert a Megatron checkpoint to a Hugging Face folder.

    hf_config: a Hugging Face folder of the same architecture, for config and tokenizer; not needed for what
    `hf_to_torch_dist` wrote. vocab_size: rows of the embedding on the way back, by default the config's. Raises
    UserError.
    """
    beside = hf_config or _side_folder(source)
    config = read_config(beside)
    arch = architecture_of(config)
    vocab = vocab_size or arch.vocab
    arch = replace(arch, vocab=vocab)
    reader = CheckpointReader(source, arch)
    report, done, total = progress or (lambda done, total: None), 0, reader.nbytes()
    count = 0
    with _new_folder(target, overwrite=overwrite) as fresh:
        writer = HfWriter(fresh)
        for name, tensor in stream_to_hf(arch, reader.stream()):
            writer.add(name, tensor)
            count += 1
            done += tensor.numel() * tensor.element_size()
            report(min(done, total), total)
        writer.close()
        copy_side_files(beside, fresh)
        config = config | {"vocab_size": vocab}
        (fresh / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    return Converted(target, arch.model_type, count, vocab)


def is_torch_dist(path: Path) -> bool:
    """Whether `path` looks like a Megatron checkpoint (or a folder of them)."""
    return (path / LATEST).is_file() or (path / "metadata.json").is_file()


def _new_folder(target: Path, *, overwrite: bool) -> AbstractContextManager[Path]:
    """See `replaced_folder`. Raises UserError when there is something at `target` already, unless it may be
    overwritten."""
    if target.exists() and (not target.is_dir() or any(target.iterdir())) and not overwrite:
        raise UserError(f"{target} is there already and not empty", hint="give another target, or --overwrite")
    return replaced_folder(target)


def _refuse_surplus(arch: Architecture, folder: HfFolder) -> None:
    """Tensors that the architecture has no place for would be lost: refuse them, but for what follows from the rest."""
    known = {name for entry in entries(arch) for name in entry.hf_names}
    surplus = sorted(
        name
        for name in folder.names() - known
        if not name.endswith("rotary_emb.inv_freq")
        and not (name == "lm_head.weight" and arch.tied)
        and not name.endswith((".mlp.experts.gate_up_proj", ".mlp.experts.down_proj"))
    )
    if surplus:
        raise UserError(
            f"{folder.path}: {len(surplus)} tensors have no place in a {arch.model_type} model, such as {surplus[0]!r}"
        )


def _side_folder(source: Path) -> Path:
    folder = checkpoint_folder(source)
    for root in (folder, folder.parent):
        if (root / HF_SIDE / "config.json").is_file():
            return root / HF_SIDE
    raise UserError(
        f"{source} does not say what model it is", hint="give the folder of the Hugging Face model (--hf-config)"
    )
