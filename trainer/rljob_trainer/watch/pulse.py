"""The sign of life of a process: a thread that rewrites a small file with a counter, and what the process is at.

The file is written in place and closed each time: a network file system shows a reader who opens it afterwards what
was written. A process that is stopped, or holds the interpreter in C code, writes nothing, and that is the sign.
"""

import contextlib
import ctypes
import faulthandler
import json
import os
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from types import FrameType
from typing import Any

EVERY_SECONDS = 2.0
FRAMES = 3
"""Innermost frames that tell where a thread is."""
_PR_SET_PTRACER, _ANYBODY = 0x59616D61, -1


@dataclass(frozen=True, slots=True)
class Beat:
    """What a pulse file says."""

    name: str
    count: int
    pid: int
    host: str
    node: str
    """Ray's id of the node; empty without Ray."""
    still: float
    """Seconds for which the working thread has not moved."""
    work: float
    """Something that grows while work is done, such as tokens made."""
    where: str
    """Innermost frames of the working thread."""


def pulse_file(directory: Path, name: str) -> Path:
    """Where the process `name` (such as `rank 0`) writes."""
    return directory / f"{name.replace(' ', '-')}.json"


def stack_file(directory: Path, name: str) -> Path:
    """Where a process writes the stacks of its threads on SIGUSR1."""
    return directory / f"{name.replace(' ', '-')}.stack"


class Pulse:
    """Writes the pulse of this process until `close`. `work` and `where` replace the working thread as what tells
    whether, and where, the process stands; see Beat. What they raise counts as no work."""

    def __init__(
        self,
        directory: str | Path,
        name: str,
        work: Callable[[], float] = lambda: 0.0,
        where: Callable[[], str] | None = None,
        every: float = EVERY_SECONDS,
    ) -> None:
        self._directory, self._name, self._every = Path(directory), name, every
        self._work, self._where = work, where
        self._directory.mkdir(parents=True, exist_ok=True)
        self._thread_id = threading.main_thread().ident
        self._count = 0
        self._at: str | None = None
        self._since = time.monotonic()
        self._stop = threading.Event()
        self._stacks = stack_file(self._directory, name).open("w", encoding="utf-8")
        _let_others_look(self._stacks)
        self._thread = threading.Thread(target=self._run, name="pulse", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop."""
        self._stop.set()
        self._thread.join(timeout=5.0)

    def _run(self) -> None:
        while True:
            # A file system that is away for a while is the driver's to find out: its own pulse stands still as well.
            with contextlib.suppress(OSError):
                self._beat()
            if self._stop.wait(self._every):
                return

    def _beat(self) -> None:
        self._count += 1
        now, at = time.monotonic(), _innermost(sys._current_frames().get(self._thread_id or 0))
        if at != self._at:
            self._at, self._since = at, now
        beat = Beat(
            self._name, self._count, os.getpid(), socket.gethostname(), _node(), now - self._since,
            *self._working(at),
        )  # fmt: skip
        text = json.dumps(asdict(beat))
        path = pulse_file(self._directory, self._name)
        with path.open("w", encoding="utf-8") as file:
            file.write(text)

    def _working(self, at: str) -> tuple[float, str]:
        try:
            return float(self._work()), at if self._where is None else self._where()
        except Exception:  # noqa: BLE001 - an engine that is not started yet, or is lost: it does no work
            return 0.0, at


def read(directory: Path) -> dict[str, Beat]:
    """The pulses in `directory`, by name. A file that is just being written is left out."""
    found: dict[str, Beat] = {}
    for path in directory.glob("*.json"):
        with contextlib.suppress(OSError, ValueError, TypeError):
            beat = Beat(**json.loads(path.read_text(encoding="utf-8")))
            found[beat.name] = beat
    return found


def _innermost(frame: FrameType | None) -> str:
    if frame is None:
        return ""
    frames = traceback.extract_stack(frame)[-FRAMES:]
    return " < ".join(f"{f.name} ({Path(f.filename).name}:{f.lineno})" for f in reversed(frames))


def _node() -> str:
    ray: Any = sys.modules.get("ray")
    if ray is None or not hasattr(ray, "is_initialized") or not ray.is_initialized():
        return ""
    return str(ray.get_runtime_context().get_node_id())


def _let_others_look(stacks: Any) -> None:
    """SIGUSR1 writes all stacks; and processes of the same user may read this one's (py-spy), where the kernel asks
    for consent (Yama)."""
    faulthandler.register(signal.SIGUSR1, file=stacks, all_threads=True)
    if sys.platform.startswith("linux"):
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PTRACER, ctypes.c_ulong(_ANYBODY), 0, 0, 0)
