"""A commit of the fsdp backend as a Hugging Face folder, made from its files alone: no rank is asked."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rljob_trainer.checkpoint.tensors import ShardReader
from rljob_trainer.export.hf_folder import HfWriter
from rljob_trainer.export.mapping import unfuse_experts

LAYOUT = "trainer.json"


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
