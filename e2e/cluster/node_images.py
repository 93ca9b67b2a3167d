"""Images on the node: what is loaded, what can be skipped, and images made of a few files."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from . import archive
from .containerd import Containerd
from .paths import Paths
from .run import ClusterError, Word, run, say, write
from .settings import PAUSE_IMAGE

# Holds a pod's namespaces open: waits for its end, and reaps what pods with a shared process namespace leave it.
_PAUSE = """package main

import (
	"os"
	"os/signal"
	"syscall"
)

func main() {
	signals := make(chan os.Signal, 8)
	signal.Notify(signals, syscall.SIGINT, syscall.SIGTERM, syscall.SIGCHLD)
	for got := range signals {
		if got != syscall.SIGCHLD {
			return
		}
		for {
			if pid, err := syscall.Wait4(-1, nil, syscall.WNOHANG, nil); pid <= 0 || err != nil {
				break
			}
		}
	}
}
"""


def digest_on(on_node: Mapping[str, str], name: str) -> str | None:
    """Digest of an image on the node.

    containerd puts its default registry before a name without one, as kubelets do.
    """
    if name in on_node:
        return on_node[name]
    full = (known for known in on_node if known.endswith(f"/{name}") and not known.startswith("localhost/"))
    return next((on_node[known] for known in full), None)


class Loaded:
    """Which image id each name had when it was loaded, and the digest the node then knew it by."""

    def __init__(self, paths: Paths) -> None:
        self._file = paths.images / "loaded.json"

    def read(self) -> dict[str, dict[str, str]]:
        """name -> {"id": …, "digest": …}"""
        try:
            known: dict[str, dict[str, str]] = json.loads(self._file.read_text())
        except FileNotFoundError:
            return {}
        return known

    def current(self, name: str, identity: str, on_node: Mapping[str, str]) -> bool:
        """Whether the node holds this very image under this name."""
        entry = self.read().get(name)
        return entry is not None and entry["id"] == identity and digest_on(on_node, name) == entry["digest"]

    def record(self, images: Mapping[str, str], on_node: Mapping[str, str]) -> None:
        """Remember what was loaded (name -> id)."""
        known = self.read()
        for name, identity in images.items():
            digest = digest_on(on_node, name)
            if digest is None:
                raise ClusterError(f"{name}: imported, yet the node does not know it")
            known[name] = {"id": identity, "digest": digest}
        write(self._file, json.dumps(known, indent=1, sort_keys=True))


def load_archive(paths: Paths, containerd: Containerd, file: Path) -> list[str]:
    """Import an archive unless the node holds its images already; the names in it."""
    images = archive.contents(file)
    if not images:
        raise ClusterError(f"{file}: holds no named image")
    loaded = Loaded(paths)
    on_node = containerd.images()
    if all(loaded.current(name, identity, on_node) for name, identity in images.items()):
        say(f"{', '.join(images)}: already on the node")
        return list(images)
    say(f"loading {', '.join(images)}")
    containerd.import_archive(file)
    loaded.record(images, containerd.images())
    return list(images)


def load_scratch(
    paths: Paths, containerd: Containerd, name: str, files: Mapping[str, Path], config: Mapping[str, Any]
) -> None:
    """Make an image of these files alone and load it. Its name has to change with its content."""
    if name in containerd.images():
        return
    with tempfile.TemporaryDirectory(prefix="rljob-image-") as folder:
        layer = archive.layer_of(files, Path(folder) / "layer.tar")
        file = Path(folder) / "image.tar"
        archive.write_archive(file, name, layer, config)
        containerd.import_archive(file)


def load_pause(paths: Paths, containerd: Containerd) -> None:
    """Build the pause program and load its image."""
    if PAUSE_IMAGE in containerd.images():
        return
    with tempfile.TemporaryDirectory(prefix="rljob-pause-") as folder:
        work = Path(folder)
        write(work / "main.go", _PAUSE)
        command: list[Word] = ["go", "build", "-trimpath", "-ldflags", "-s -w", "-o", work / "pause", work / "main.go"]
        run(command, env={"CGO_ENABLED": "0", "GO111MODULE": "off"}, cwd=work)
        load_scratch(paths, containerd, PAUSE_IMAGE, {"/pause": work / "pause"}, {"Entrypoint": ["/pause"]})
