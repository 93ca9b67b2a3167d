"""What can build an image: buildah with a base made here, or podman or docker with a base from a registry."""

from __future__ import annotations

import json
import shutil
import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

from e2e.cluster import images as cluster_images
from e2e.cluster import node_images
from e2e.cluster.cluster import Cluster
from e2e.cluster.paths import Paths

from .catalog import ROOT

KEY_LABEL = "rljob.io/content-key"
REGISTRY_BASE = "python:3.13-slim-trixie"
BUILD_SECONDS = 3600


class BuildError(Exception):
    """An image could not be built; the message is for the user."""


class Builder(Protocol):
    """What `python -m images.build` asks of a builder."""

    def default_base(self) -> str:
        """The base image of the CPU images, made or named."""

    def labels(self, reference: str) -> dict[str, str] | None:
        """Labels of an image in local storage; None when it is not there."""

    def build(self, containerfile: Path, reference: str, arguments: Mapping[str, str]) -> None:
        """Build; raises BuildError or ClusterError with the end of the log."""

    def size(self, reference: str) -> int:
        """Unpacked size in bytes."""

    def load(self, reference: str) -> None:
        """Put the image on the node of the e2e cluster."""


class Buildah:
    """buildah, with storage in RLJob's cache and a Debian base made by debootstrap: needs no registry of images."""

    def default_base(self) -> str:
        """See Builder."""
        return cluster_images.debootstrap_base()

    def labels(self, reference: str) -> dict[str, str] | None:
        """See Builder."""
        if cluster_images.image_id(reference) is None:
            return None
        config = json.loads(cluster_images.buildah("inspect", "--type", "image", reference))
        return dict(config["OCIv1"]["config"].get("Labels") or {})

    def build(self, containerfile: Path, reference: str, arguments: Mapping[str, str]) -> None:
        """See Builder."""
        cluster_images.buildah_build(containerfile, ROOT, reference, arguments, timeout=BUILD_SECONDS)

    def size(self, reference: str) -> int:
        """See Builder."""
        listed = json.loads(cluster_images.buildah("images", "--json", reference))
        return _bytes(str(listed[0]["size"]))

    def load(self, reference: str) -> None:
        """See Builder."""
        cluster_images.load(reference)


class Engine:
    """docker or podman."""

    def __init__(self, program: str) -> None:
        """`program` is `docker` or `podman`."""
        self.program = program

    def _run(self, *words: str | Path, check: bool = True) -> str:
        command = [self.program, *map(str, words)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=BUILD_SECONDS, check=False)
        if check and done.returncode:
            end = "\n".join((done.stdout + done.stderr).splitlines()[-25:])
            raise BuildError(f"{' '.join(command[:4])} …: exit code {done.returncode}\n{end}")
        return done.stdout if done.returncode == 0 else ""

    def default_base(self) -> str:
        """See Builder."""
        return REGISTRY_BASE

    def labels(self, reference: str) -> dict[str, str] | None:
        """See Builder."""
        out = self._run("image", "inspect", reference, check=False)
        return dict(json.loads(out)[0]["Config"].get("Labels") or {}) if out else None

    def build(self, containerfile: Path, reference: str, arguments: Mapping[str, str]) -> None:
        """See Builder."""
        words = [word for name, value in sorted(arguments.items()) for word in ("--build-arg", f"{name}={value}")]
        self._run("build", "--file", containerfile, "--tag", reference, *words, ROOT)

    def size(self, reference: str) -> int:
        """See Builder."""
        return int(json.loads(self._run("image", "inspect", reference))[0]["Size"])

    def load(self, reference: str) -> None:
        """See Builder."""
        paths = Paths.from_env()
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "image.tar"
            self._run("save", "--output", file, reference)
            node_images.load_archive(paths, Cluster(paths).containerd, file)


def choose(name: str | None = None, *, install: bool = False) -> Builder:
    """The builder of this name, else the first that this machine has. Raises BuildError when there is none.

    `install`: buildah comes by apt then, as what else the e2e cluster on this machine needs.
    """
    for program in (name,) if name else ("buildah", "podman", "docker"):
        if program and shutil.which(program) and (program == "buildah" or _answers(program)):
            return Buildah() if program == "buildah" else Engine(program)
    if install and name in (None, "buildah"):
        return Buildah()
    wanted = name or "buildah, podman or docker"
    raise BuildError(f"found no {wanted} that works; install one (apt-get install buildah)")


def _answers(program: str) -> bool:
    try:
        return subprocess.run([program, "info"], capture_output=True, timeout=30, check=False).returncode == 0
    except subprocess.TimeoutExpired:
        return False


def _bytes(text: str) -> int:
    """Bytes of a size as buildah prints it ("298 MB")."""
    number, unit = text.split()
    return int(float(number) * {"B": 1, "KB": 1e3, "MB": 1e6, "GB": 1e9}[unit.upper()])
