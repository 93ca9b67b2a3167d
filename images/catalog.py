"""Which images there are, and which files of the repository each is made of."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
API = ("api/rljob_api", "api/rljob")


@dataclass(frozen=True)
class Image:
    """One image: `rljob/<name>:<tag>`, made by `images/<name>.Containerfile`."""

    name: str
    sources: tuple[str, ...]
    """Files and folders that its Containerfile copies, below the repository's root."""
    needs_gpu_base: bool = False

    @property
    def containerfile(self) -> Path:
        """Where its Containerfile lies."""
        return ROOT / "images" / f"{self.name}.Containerfile"

    def reference(self, tag: str) -> str:
        """The name it is built under."""
        return f"rljob/{self.name}:{tag}"


IMAGES: dict[str, Image] = {
    image.name: image
    for image in (
        Image("operator", ("operator/rljob_operator", "cli/rljob_cli", *API)),
        Image("retriever", ("trainer/rljob_trainer", *API)),
        Image("trainer-cpu", ("trainer/rljob_trainer", *API)),
        Image("trainer", ("trainer/rljob_trainer", *API, "images/transformer-engine.txt"), needs_gpu_base=True),
    )
}
# The GPU image needs a CUDA base and 60 GB of disk: it is built when it is asked for by name.
DEFAULT = ("operator", "retriever", "trainer-cpu")


def files_of(root: Path, places: tuple[str, ...]) -> Iterator[Path]:
    """The files of some files and folders in a fixed order, without Python's caches."""
    for place in places:
        path = root / place
        found = [path] if path.is_file() else sorted(file for file in path.rglob("*") if file.is_file())
        yield from (file for file in found if "__pycache__" not in file.parts)


def content_key(image: Image, arguments: Mapping[str, str], root: Path = ROOT) -> str:
    """Names all that decides an image's content: its Containerfile, scripts, lock file, code and build arguments."""
    digest = hashlib.sha256(json.dumps(sorted(arguments.items())).encode())
    containerfile = image.containerfile.relative_to(ROOT).as_posix()
    for file in files_of(root, (containerfile, "images/scripts", "pyproject.toml", "uv.lock", *image.sources)):
        digest.update(f"\0{file.relative_to(root).as_posix()}\0{file.stat().st_mode & 0o111}\0".encode())
        digest.update(hashlib.sha256(file.read_bytes()).digest())
    return digest.hexdigest()[:16]
