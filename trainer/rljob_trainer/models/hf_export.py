"""Hugging Face folders: of weights that ranks hold, and of a commit of the fsdp backend, made from its files alone."""

import copy
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rljob_trainer.atomic_files import replaced_folder
from rljob_trainer.checkpoint.tensors import ShardReader
from rljob_trainer.export.hf_folder import HfWriter
from rljob_trainer.export.mapping import unfuse_experts
from rljob_trainer.models.tokenizer import save_tokenizer

LAYOUT = "trainer.json"


def save_hf(
    config: Any, architecture: str, weights: Mapping[str, Tensor], tokenizer: Any, directory: str | Path
) -> None:
    """Write a folder that `AutoModelForCausalLM.from_pretrained` loads; it appears whole, and replaces an earlier one.

    config: the transformers config. architecture: name of the model's class. weights: all parameters under their
    Hugging Face names, tied ones once.
    """
    from huggingface_hub import save_torch_state_dict

    config = copy.deepcopy(config)
    config.architectures, config.use_cache = [architecture], True
    config.dtype = next(iter(weights.values())).dtype
    with replaced_folder(Path(directory), fsync=True) as folder:
        folder.mkdir()
        config.save_pretrained(folder)
        save_torch_state_dict(dict(weights), folder, max_shard_size="5GB")
        if tokenizer is not None:
            save_tokenizer(tokenizer, folder)


def is_exportable(commit: Path) -> bool:
    """Whether the commit is one of the fsdp backend."""
    return (commit / LAYOUT).is_file()


def export_commit(
    commit: Path, target: Path, describe: Callable[[Path], Any], dtype: torch.dtype, *, shard_bytes: int | None = None
) -> None:
    """Write the commit's weights, in `dtype`, to the new folder `target`; `describe` adds config and tokenizer.

    One tensor is held at a time, and the shard that is being filled (5 GB).
    """
    writer = HfWriter(target) if shard_bytes is None else HfWriter(target, shard_bytes)
    for name, tensor in commit_weights(commit):
        for part, value in unfuse_experts({name: tensor}).items():
            writer.add(part, value.to(dtype))
    writer.close()
    describe(target)


def commit_weights(commit: Path) -> Iterator[tuple[str, Tensor]]:
    """The policy's tensors, whole, as they were committed (float32), sorted by name."""
    world_size = int(json.loads((commit / LAYOUT).read_text(encoding="utf-8"))["worldSize"])
    with ShardReader(commit, world_size) as reader:
        for name in sorted(reader.names("model.")):
            yield name.removeprefix("model."), reader.rows(name, 0, reader.length(name))
