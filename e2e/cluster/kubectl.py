"""kubectl as a small object: apply, get, wait."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .run import Word, run, succeeds

Manifest = dict[str, Any]


@dataclass(frozen=True)
class Kubectl:
    """A kubectl binary and the kubeconfig it uses."""

    binary: Path
    kubeconfig: Path

    def __call__(self, *arguments: Word, stdin: str | None = None, timeout: float = 60) -> str:
        """Run kubectl; ClusterError when it fails."""
        command: list[Word] = [self.binary, f"--kubeconfig={self.kubeconfig}", *arguments]
        return run(command, stdin=stdin, timeout=timeout).stdout

    def _quietly(self, *arguments: str) -> bool:
        return succeeds([self.binary, f"--kubeconfig={self.kubeconfig}", "--request-timeout=5s", *arguments])

    def answers(self, path: str) -> bool:
        """Whether a raw path answers 200."""
        return self._quietly("get", "--raw", path)

    def exists(self, name: str, namespace: str) -> bool:
        """Whether an object (kind/name) is there."""
        return self._quietly("get", "-n", namespace, name)

    def get(self, *arguments: str) -> Manifest:
        """Objects as JSON."""
        found: Manifest = json.loads(self("get", "-o", "json", *arguments))
        return found

    def apply(self, manifests: Iterable[Manifest]) -> None:
        """Server-side apply."""
        items = {"apiVersion": "v1", "kind": "List", "items": list(manifests)}
        self("apply", "--server-side", "--force-conflicts", "-f", "-", stdin=json.dumps(items))
