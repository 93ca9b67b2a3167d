"""Files of commits: their entries in the manifest, hashes, and JSON that survives a crash."""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rljob_trainer.atomic_files import fsync_file, write_file


@dataclass(frozen=True)
class FileEntry:
    """One file of a commit as its manifest lists it. `path` is relative to the commit."""

    path: str
    size: int
    sha256: str


def hash_file(path: Path) -> str:
    """SHA-256 of a file, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_json(path: Path, value: Any) -> None:
    """Write JSON durably. Not atomic: for files within a folder that is renamed into place afterwards."""
    path.write_text(_json(value), encoding="utf-8")
    fsync_file(path)


def write_json_atomic(path: Path, value: Any) -> None:
    """Write JSON so that a reader, or a crash, sees the old file or the new one."""
    write_file(path, _json(value), fsync_folder=True)


def _json(value: Any) -> str:
    return json.dumps(value, indent=1, sort_keys=True, allow_nan=False) + "\n"
