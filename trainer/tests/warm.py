"""Processes that begin as copies of one that has imported torch and transformers already.

Importing them takes a fresh interpreter five seconds of CPU, and a run of a job starts at least three. What is copied
has done nothing but import: one thread, no random numbers drawn. It has not imported Ray, which reads its environment
once, when it is imported. A copy has the server's hash seed, so tests
that compare two runs bit for bit take one of them from a fresh interpreter. With `RLJOB_TESTS_COLD=1` every process is
started from nothing, as `rljob run` starts it.
"""

import multiprocessing
import os
import signal
import subprocess
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from multiprocessing import forkserver
from multiprocessing.context import ForkServerProcess
from pathlib import Path

COLD = os.environ.get("RLJOB_TESTS_COLD", "") not in ("", "0")
PRELOAD = [
    "aiohttp",
    "rljob_trainer.training.fsdp.backend",
    "rljob_trainer.training.rank",
    "rljob_trainer.checkpoint",
    "rljob_trainer.data",
    "rljob_trainer.driver",
    "rljob_trainer.orchestrator.recorder",
    "rljob_trainer.rollout.samples",
    "rljob_trainer.report.write",
    "rljob_trainer.rewards",
    "rljob_trainer.rollout.generate.build",
    "rljob_trainer.rollout.service",
    "rljob_trainer.inference.torch_engine.engine",
    "rljob_trainer.workers.rollout_worker",
    "transformers.models.qwen2.modeling_qwen2",
]
_THREADS = {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE", "TOKENIZERS_PARALLELISM": "false"}
"""Read when torch is imported, so the server has to have them."""


class WarmProcess:
    """A copy that runs `main(arguments)`, with the methods of `subprocess.Popen` that the tests use. It is the leader
    of a session of its own; its standard output and error are files."""

    def __init__(
        self,
        main: Callable[[list[str]], int | None],
        arguments: Sequence[str],
        *,
        env: Mapping[str, str],
        output: Path,
    ) -> None:
        """`output`: prefix of the two files. Raises OSError when the server does not come up."""
        self._stdout, self._stderr = (output.with_name(f"{output.name}.{name}") for name in ("stdout", "stderr"))
        for file in (self._stdout, self._stderr):
            file.write_bytes(b"")
        context = multiprocessing.get_context("forkserver")
        _start_server()
        self._process: ForkServerProcess = context.Process(
            target=_run,
            args=(main, list(arguments), dict(env), os.getcwd(), str(self._stdout), str(self._stderr)),
        )
        self._process.start()
        if self._process.pid is None:
            raise OSError("the process did not start")
        self.pid = self._process.pid

    @property
    def returncode(self) -> int | None:
        return self._process.exitcode

    def poll(self) -> int | None:
        return self._process.exitcode

    def wait(self, timeout: float | None = None) -> int:
        """Raises subprocess.TimeoutExpired after `timeout` seconds."""
        self._process.join(timeout)
        if self._process.exitcode is None:
            raise subprocess.TimeoutExpired(self._process.name, timeout or 0.0)
        return self._process.exitcode

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        """What was written to standard output and error, once the process has ended."""
        self.wait(timeout)
        return self._stdout.read_text(), self._stderr.read_text()

    def send_signal(self, number: signal.Signals) -> None:
        if self._process.exitcode is None:
            os.kill(self.pid, number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


def _start_server() -> None:
    """Start the server, once for this test process, with the environment that a fresh interpreter would have."""
    before = {name: os.environ.get(name) for name in _THREADS}
    os.environ.update(_THREADS)
    try:
        forkserver.set_forkserver_preload(PRELOAD)
        forkserver.ensure_running()
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _run(
    main: Callable[[list[str]], int | None],
    arguments: list[str],
    env: dict[str, str],
    directory: str,
    stdout: str,
    stderr: str,
) -> None:
    os.setsid()
    os.environ.clear()
    os.environ.update(env)
    os.chdir(directory)
    for number, path in ((1, stdout), (2, stderr)):
        file = os.open(path, os.O_WRONLY | os.O_APPEND)
        os.dup2(file, number)
        os.close(file)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # the server ignores it
    assert "ray" not in sys.modules, "Ray has read the server's environment"
    _path_first(env.get("PYTHONPATH", ""))
    code: int | None = 1
    try:
        code = main(arguments)
    except SystemExit as ended:
        code = ended.code if isinstance(ended.code, int) else int(ended.code is not None)
    except BaseException:  # noqa: BLE001 - told as an interpreter would
        traceback.print_exc()
    for stream in (sys.stdout, sys.stderr):
        with suppress(ValueError):
            stream.flush()
    os._exit(code or 0)


def _path_first(text: str) -> None:
    """Folders of PYTHONPATH come first, as in an interpreter that is started with it."""
    folders = [folder for folder in text.split(os.pathsep) if folder]
    sys.path[:] = [*folders, *(folder for folder in sys.path if folder not in folders)]
