"""Hugging Face folders: reading tensors (or rows of them) by name, and writing them as they come."""

import json
import re
import shutil
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import torch
from rljob_api.errors import UserError
from torch import Tensor

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
SHARD_BYTES = 5_000_000_000
_SIDE_FILES = ("*.json", "*.jinja", "*.model", "*.txt", "*.py", "*.tiktoken")
_EXPERT = re.compile(r"^(.*\.mlp\.experts)\.(\d+)\.(gate|up|down)_proj\.weight$")


class HfFolder:
    """The safetensors of a folder. A context manager; tensors are read when they are asked for."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._stack = ExitStack()
        self._open: dict[str, Any] = {}
        self._files: dict[str, str] = {}

    def __enter__(self) -> Self:
        if (self.path / INDEX).is_file():
            self._files = dict(_read_json(self.path / INDEX)["weight_map"])
            for file in sorted(set(self._files.values())):
                if not (self.path / file).is_file():
                    raise UserError(f"{self.path} has no {file}, which its {INDEX} names")
        elif (self.path / SINGLE).is_file():
            self._files = dict.fromkeys(self._file(SINGLE).keys(), SINGLE)
        else:
            raise UserError(f"{self.path} has neither {SINGLE} nor {INDEX}: weights are needed as safetensors")
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._stack.close()

    def __contains__(self, name: str) -> bool:
        return name in self._files

    def names(self) -> set[str]:
        """Names of all tensors."""
        return set(self._files)

    def dtype(self, name: str) -> torch.dtype:
        """A tensor's dtype, without reading it."""
        name, _ = self._resolve(name)
        return getattr(torch, _DTYPES[self._slice(name).get_dtype()])  # type: ignore[no-any-return]

    def shape(self, name: str) -> tuple[int, ...]:
        """A tensor's shape, without reading it."""
        return tuple(self._slice(name).get_shape())

    def get(self, name: str) -> Tensor:
        """A whole tensor. An expert's is cut out of a fused one where the folder has it so."""
        stored, expert = self._resolve(name)
        if expert is None:
            whole: Tensor = self._file(self._files[stored]).get_tensor(stored)
            return whole
        number, which = expert
        part: Tensor = self._slice(stored)[number]
        if which == "down":
            return part
        half = part.shape[0] // 2
        return part[:half] if which == "gate" else part[half:]

    def rows(self, name: str, start: int, stop: int) -> Tensor:
        """Rows [start, stop) of a tensor; nothing else is read."""
        part: Tensor = self._slice(name)[start:stop]
        return part

    def _resolve(self, name: str) -> tuple[str, tuple[int, str] | None]:
        if name in self._files:
            return name, None
        found = _EXPERT.match(name)
        if found is not None:
            fused = f"{found[1]}.{'down_proj' if found[3] == 'down' else 'gate_up_proj'}"
            if fused in self._files:
                return fused, (int(found[2]), found[3])
        raise UserError(f"{self.path} has no tensor {name!r}: its config.json and its weights do not belong together")

    def _slice(self, name: str) -> Any:
        if name not in self._files:
            raise UserError(f"{self.path} has no tensor {name!r}")
        return self._file(self._files[name]).get_slice(name)

    def _file(self, name: str) -> Any:
        from safetensors import SafetensorError, safe_open

        if name not in self._open:
            try:
                self._open[name] = self._stack.enter_context(safe_open(self.path / name, framework="pt"))
            except (SafetensorError, OSError) as error:
                raise UserError(f"{self.path / name} cannot be read: {error}") from error
        return self._open[name]


class HfWriter:
    """Writes tensors as they come into shards of about 5 GB, and the index at the end. Call `close` after the last."""

    def __init__(self, folder: Path, shard_bytes: int = SHARD_BYTES) -> None:
        folder.mkdir(parents=True)
        self._folder, self._limit = folder, shard_bytes
        self._pending: dict[str, Tensor] = {}
        self._bytes, self._total = 0, 0
        self._shards: list[list[str]] = []

    def add(self, name: str, tensor: Tensor) -> None:
        """One tensor; it is kept until its shard is full."""
        size = tensor.numel() * tensor.element_size()
        if self._pending and self._bytes + size > self._limit:
            self._flush()
        self._pending[name] = tensor.contiguous().cpu().clone()  # a view would keep the whole it was cut from
        self._bytes += size
        self._total += size

    def close(self) -> None:
        """Write the last shard, give the files their names, write the index."""
        if self._pending:
            self._flush()
        count = len(self._shards)
        if count == 1:
            (self._folder / _part(1)).rename(self._folder / SINGLE)
            return
        names: dict[str, str] = {}
        for number, shard in enumerate(self._shards, 1):
            final = f"model-{number:05d}-of-{count:05d}.safetensors"
            (self._folder / _part(number)).rename(self._folder / final)
            names |= dict.fromkeys(shard, final)
        index = {"metadata": {"total_size": self._total}, "weight_map": dict(sorted(names.items()))}
        (self._folder / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")

    def _flush(self) -> None:
        from safetensors.torch import save_file

        self._shards.append(list(self._pending))
        save_file(self._pending, self._folder / _part(len(self._shards)), metadata={"format": "pt"})
        self._pending, self._bytes = {}, 0


_DTYPES = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16", "F8_E4M3": "float8_e4m3fn"}


def _part(number: int) -> str:
    return f"part-{number:05d}.safetensors"


def read_config(folder: Path) -> dict[str, Any]:
    """The content of a folder's config.json. Raises UserError."""
    if not (folder / "config.json").is_file():
        raise UserError(f"{folder} has no config.json: it is no Hugging Face folder")
    return _read_json(folder / "config.json")


def copy_side_files(source: Path, target: Path) -> None:
    """Copy what is beside the weights: config, tokenizer, chat template, generation settings."""
    target.mkdir(parents=True, exist_ok=True)
    for pattern in _SIDE_FILES:
        for path in source.glob(pattern):
            if path.is_file() and not path.name.endswith(".index.json"):
                shutil.copyfile(path, target / path.name)


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read: {error}") from error
    if not isinstance(value, dict):
        raise UserError(f"{path} cannot be read: it is no JSON object")
    return value
