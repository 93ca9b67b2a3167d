"""docker-archive files: reading what one holds, and writing one from a root file system without any tool."""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any


def contents(archive: Path) -> dict[str, str]:
    """Image name -> digest of its configuration (the image id), for each name in the archive."""
    with tarfile.open(archive) as tar:
        file = tar.extractfile("manifest.json")
        if file is None:
            raise ValueError(f"{archive}: no manifest.json")
        entries: list[dict[str, Any]] = json.load(file)
    found: dict[str, str] = {}
    for entry in entries:
        identity = Path(str(entry["Config"])).name.removesuffix(".json")
        for name in entry.get("RepoTags") or []:
            found[str(name)] = f"sha256:{identity}"
    return found


def _add(tar: tarfile.TarFile, name: str, data: bytes, mode: int = 0o644) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(data)
    info.mode = mode
    tar.addfile(info, io.BytesIO(data))


def layer_of(files: Mapping[str, Path], target: Path) -> Path:
    """Write a layer with these files (path in the image -> file), owned by root, the same bytes every time."""
    with tarfile.open(target, "w") as tar:
        for name, source in sorted(files.items()):
            _add(tar, name.lstrip("/"), source.read_bytes(), mode=0o755)
    return target


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_archive(target: Path, name: str, layer: Path, config: Mapping[str, Any], env: Sequence[str] = ()) -> None:
    """Write a one-layer image as a docker-archive. The configuration is that of the OCI image (Entrypoint, User …)."""
    identity = _digest(layer)
    image = {
        "architecture": "amd64",
        "os": "linux",
        "config": {"Env": [*env], **config},
        "rootfs": {"type": "layers", "diff_ids": [f"sha256:{identity}"]},
        "history": [{"created": "1970-01-01T00:00:00Z", "created_by": "rljob e2e"}],
        "created": "1970-01-01T00:00:00Z",
    }
    text = json.dumps(image, sort_keys=True).encode()
    config_name = f"{hashlib.sha256(text).hexdigest()}.json"
    manifest = [{"Config": config_name, "RepoTags": [name], "Layers": [f"{identity}.tar"]}]
    temporary = target.with_name(f".{target.name}.partial")
    with tarfile.open(temporary, "w") as tar:
        _add(tar, config_name, text)
        tar.add(layer, arcname=f"{identity}.tar", filter=_plain)
        _add(tar, "manifest.json", json.dumps(manifest).encode())
    temporary.rename(target)


def _plain(info: tarfile.TarInfo) -> tarfile.TarInfo:
    info.uid = info.gid = info.mtime = 0
    info.uname = info.gname = ""
    return info
