"""kubectl as a user runs it, with a time limit and its message in the error."""

import json
import os
import subprocess
from typing import Any


class KubectlError(RuntimeError):
    """kubectl failed; `stderr` is what it said."""

    def __init__(self, arguments: tuple[str, ...], stderr: str) -> None:
        super().__init__(f"kubectl {' '.join(arguments)}: {stderr.strip()}")
        self.stderr = stderr


class Kubectl:
    """kubectl against one kubeconfig and namespace."""

    def __init__(self, kubeconfig: str, namespace: str = "default") -> None:
        self.kubeconfig = kubeconfig
        self.namespace = namespace

    def __call__(self, *arguments: str, stdin: str | None = None, seconds: float = 60) -> str:
        """Standard output of the command. Raises KubectlError when it fails."""
        done = subprocess.run(
            ["kubectl", "-n", self.namespace, *arguments],
            input=stdin,
            capture_output=True,
            text=True,
            timeout=seconds,
            check=False,
            env=os.environ | {"KUBECONFIG": self.kubeconfig},
        )
        if done.returncode:
            raise KubectlError(arguments, done.stderr)
        return done.stdout

    def get(self, *arguments: str) -> dict[str, Any]:
        """An object, or a List."""
        answer: dict[str, Any] = json.loads(self("get", *arguments, "-o", "json"))
        return answer

    def items(self, *arguments: str) -> list[dict[str, Any]]:
        """The objects of a List."""
        items: list[dict[str, Any]] = self.get(*arguments)["items"]
        return items

    def names(self, *arguments: str) -> list[str]:
        """`kind/name` of what matches."""
        return self("get", *arguments, "-o", "name", "--ignore-not-found").split()

    def apply(self, manifest: str) -> None:
        """`kubectl apply -f -`."""
        self("apply", "-f", "-", stdin=manifest)
