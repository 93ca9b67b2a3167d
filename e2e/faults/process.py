"""The operator as a process that can be killed, started anew in a fraction of a second.

Python takes longer to import the operator than the operator to do its work: a fork server imports it once, and each
start is a fork of it. The process is the operator's own `main`, with its own event loop, connections and memory.
"""

from __future__ import annotations

import asyncio
import json
import multiprocessing
import os
import signal
import socket
import sys
import urllib.error
import urllib.request
from datetime import UTC, datetime, timedelta, tzinfo
from multiprocessing.process import BaseProcess
from pathlib import Path

_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(["rljob_operator.main", "e2e.faults.process"])

QUICK = {
    "retry-backoff-seconds": 0.2,
    "kuberay-recheck-seconds": 1.0,
    "resync-seconds": 30.0,
    "settle-seconds": 0.5,
    "request-timeout-seconds": 5.0,
    "workers": 2,
}
"""Settings that make a story short without changing what happens in it."""


def _main(arguments: list[str], kubeconfig: str, log: str, skew: float) -> None:
    """The operator's process."""
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    os.environ["KUBECONFIG"] = kubeconfig
    sys.argv = ["rljob_operator", *arguments]
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    if skew:
        _skew(skew)
    from rljob_operator.main import main

    main()


def _skew(seconds: float) -> None:
    """This process' wall clock is wrong by so many seconds, for every module of the operator that reads it."""

    class Skewed(datetime):
        @classmethod
        def now(cls, tz: tzinfo | None = None) -> Skewed:
            true = datetime.now(tz or UTC) + timedelta(seconds=seconds)
            return cls.fromtimestamp(true.timestamp(), tz)

    for name, module in list(sys.modules.items()):
        if name.startswith("rljob_operator.") and getattr(module, "datetime", None) is datetime:
            module.datetime = Skewed  # type: ignore[attr-defined]


class Operator:
    """One operator, for one namespace, behind one address."""

    def __init__(
        self, namespace: str, server_port: int, folder: Path, *, skew: float = 0.0, **settings: object
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.log = folder / f"{namespace}.log"
        self._skew = skew
        self._kubeconfig = folder / f"{namespace}.kubeconfig"
        self._kubeconfig.write_text(json.dumps(_kubeconfig(server_port)))
        flags = QUICK | {k.replace("_", "-"): v for k, v in settings.items()} | {
            "watch-namespaces": namespace, "port": self.port, "log-format": "plain",
            "trainer-image": "example.invalid/trainer:none", "retriever-image": "example.invalid/retriever:none",
        }  # fmt: skip
        self._arguments = [word for name, value in flags.items() for word in (f"--{name}", str(value))]
        self._process: BaseProcess | None = None
        self.starts = 0

    def start(self) -> None:
        """Start it; not waiting until it is ready."""
        arguments = (self._arguments, str(self._kubeconfig), str(self.log), self._skew)
        self._process = _context.Process(target=_main, args=arguments, daemon=True)
        self._process.start()
        self.starts += 1

    def kill(self) -> None:
        """SIGKILL, at once."""
        if self._process is not None:
            self._process.kill()

    async def gone(self) -> None:
        """Wait until the killed process is no more."""
        process, self._process = self._process, None
        if process is not None:
            await asyncio.to_thread(process.join, 20)
            assert not process.is_alive(), "SIGKILL did not end the operator"
            process.close()

    async def restart(self) -> None:
        """SIGKILL and start."""
        self.kill()
        await self.gone()
        self.start()

    async def close(self) -> None:
        """End it for good."""
        self.kill()
        await self.gone()

    @property
    def alive(self) -> bool:
        """Whether the process runs."""
        return self._process is not None and self._process.is_alive()

    async def page(self, path: str) -> tuple[int, str]:
        """Status and text of /healthz, /readyz or /metrics; 0 when it does not answer."""
        return await asyncio.to_thread(self._page, path)

    def _page(self, path: str) -> tuple[int, str]:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}{path}", timeout=5) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()
        except OSError:
            return 0, ""


def _kubeconfig(port: int) -> dict[str, object]:
    cluster = {"name": "proxy", "cluster": {"server": f"http://127.0.0.1:{port}"}}
    user = {"name": "operator", "user": {"token": "the-proxy-has-its-own"}}
    context = {"name": "proxy", "context": {"cluster": "proxy", "user": "operator"}}
    return {
        "apiVersion": "v1", "kind": "Config", "current-context": "proxy",
        "clusters": [cluster], "users": [user], "contexts": [context],
    }  # fmt: skip
