"""A rank's state in a commit: one file of tensors per rank, and `trainer.json`, in which rank 0 says whose they are.

Which tensors there are, and how they come back, is the backend's business (`fsdp.state`, `megatron.state`).
"""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rljob_trainer.checkpoint.files import FileEntry, hash_file, write_json
from rljob_trainer.checkpoint.tensors import ShardReader, write_shard

ABOUT = "trainer.json"


def state_writer(
    directory: str | Path,
    rank: int,
    about: Mapping[str, Any],
    tensors: Mapping[str, Tensor],
    device: torch.device,
    *,
    copy: bool,
) -> Callable[[], list[FileEntry]]:
    """A function that writes `tensors` and this process's generators, durably; entries for the manifest.

    about: content of `trainer.json`, with the number of ranks as `worldSize`. copy: copy everything to host memory now.
    """
    complete = dict(tensors)
    complete["rng.cpu"] = torch.get_rng_state()
    if device.type == "cuda":
        complete["rng.cuda"] = torch.cuda.get_rng_state()
    if copy:
        complete = {name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in complete.items()}

    def write() -> list[FileEntry]:
        entries = [write_shard(directory, rank, about["worldSize"], complete)]
        if rank == 0:
            path = Path(directory) / ABOUT
            write_json(path, dict(about))
            entries.append(FileEntry(path.name, path.stat().st_size, hash_file(path)))
        return entries

    return write


def read_about(directory: str | Path) -> dict[str, Any]:
    """The `trainer.json` of a commit."""
    about: dict[str, Any] = json.loads((Path(directory) / ABOUT).read_text(encoding="utf-8"))
    return about


def restore_generators(reader: ShardReader, rank: int, device: torch.device) -> None:
    """Let this process draw on where `rank` stood when the commit was written."""
    torch.set_rng_state(reader.own("rng.cpu", rank))
    if device.type == "cuda" and "rng.cuda" in reader:
        torch.cuda.set_rng_state(reader.own("rng.cuda", rank))
