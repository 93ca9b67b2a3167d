"""The retriever of a local run: started, waited for, and started again when it ends or falls silent."""

import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from pathlib import Path

from rljob_api.errors import UserError
from rljob_api.v1alpha1.retriever import RetrieverSpec

from rljob_trainer.local.processes import Child

RESTARTS = 3
"""Restarts after which a retriever is left alone: searches then fail, and are counted (`search_failures`)."""
LOOK_SECONDS, ANSWER_SECONDS = 5.0, 10.0
SILENT_LOOKS = 3
"""Looks in a row without an answer after which it is restarted; what the liveness probe does on a cluster."""


class LocalRetriever:
    """A context manager; leaving it ends the process."""

    def __init__(
        self, spec: RetrieverSpec, manifest: Path, directory: Path, env: Mapping[str, str], say: Callable[[str], None]
    ) -> None:
        self._spec, self._manifest, self._dir, self._env, self._say = spec, manifest, directory, env, say
        self._port_file = directory / "logs" / "retriever.port"
        self._port = 0
        self._restarts = self._silent = 0
        self._looked = time.monotonic()
        self._child: Child | None = None

    @property
    def url(self) -> str:
        """Where it answers."""
        return f"http://127.0.0.1:{self._port}"

    def __enter__(self) -> "LocalRetriever":
        self._child = self._start()
        return self

    def __exit__(self, *exc: object) -> None:
        if self._child is not None:
            self._child.end()

    def wait_ready(self) -> None:
        """Wait until it answers that it is ready. Raises UserError with its last words otherwise."""
        limit = self._spec.startup_timeout_seconds
        deadline = time.monotonic() + limit
        assert self._child is not None
        while not self._ready():
            if self._child.process.poll() is not None:
                raise UserError(
                    f"the retriever ended with exit code {self._child.process.returncode}:\n{self._child.tail()}",
                    hint=f"see {self._child.log}",
                )
            if time.monotonic() > deadline:
                raise UserError(
                    f"the retriever was not ready within spec.retriever.startupTimeoutSeconds = {limit:.0f}",
                    hint=f"see {self._child.log}",
                )
            time.sleep(0.1)

    def look(self) -> None:
        """Call this often: every few seconds it is looked after, and restarted when it has ended or is silent."""
        now = time.monotonic()
        if self._child is None or now - self._looked < LOOK_SECONDS:
            return
        ended = self._child.process.poll()
        if ended is None and answers(f"{self.url}/healthz", ANSWER_SECONDS):
            self._silent = 0
        else:
            self._silent += 1
            if ended is not None:
                self._restart(f"ended with exit code {ended}")
            elif self._silent >= SILENT_LOOKS:
                self._restart(f"has not answered {self._silent} times")
        self._looked = time.monotonic()

    def _restart(self, why: str) -> None:
        assert self._child is not None
        self._silent = 0
        if self._restarts == RESTARTS:
            self._say(f"the retriever {why} again; it is not restarted any more, see {self._child.log}")
            self._child.end()
            self._child = None
            return
        self._restarts += 1
        self._say(f"the retriever {why}; it is restarted ({self._restarts} of {RESTARTS}), see {self._child.log}")
        self._child.end()
        self._child = self._start()

    def _start(self) -> Child:
        """It builds the index when it is missing, and takes another port when its own is busy; a restarted one has the
        port of the one before, which the driver knows."""
        command = [sys.executable, "-m", "rljob_trainer.retriever", "--job", str(self._manifest)]
        command += ["--dir", str(self._dir), "--host", "127.0.0.1", "--port", str(self._port or self._spec.port)]
        if not self._port:
            self._port_file.unlink(missing_ok=True)
            command += ["--port-file", str(self._port_file)]
        return Child("retriever", command, env=self._env, log=self._dir / "logs" / "retriever.log")

    def _ready(self) -> bool:
        if not self._port_file.exists():
            return False
        self._port = int(self._port_file.read_text())
        return answers(f"{self.url}/readyz", 5.0)


def answers(url: str, timeout: float) -> bool:
    """Whether a GET is answered with 200."""
    try:
        with urllib.request.urlopen(url, timeout=timeout) as answer:
            return bool(answer.status == 200)
    except (urllib.error.URLError, OSError):
        return False
