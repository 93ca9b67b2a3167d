"""The daemons: started in the cluster's namespace and cgroup, recorded by pid and start time."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from . import cgroups
from .paths import Paths
from .run import ClusterError, attempt, say, tail_file, write


@dataclass(frozen=True)
class Record:
    """A process that was started here. The start time (clock ticks since boot) tells it from a later one of its pid."""

    name: str
    pid: int
    started: int


def start_time(pid: int) -> int | None:
    """Start time of a living process, None when there is none (a zombie counts as none)."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return None
    state, *fields = text.rpartition(")")[2].split()  # the command's name may hold spaces and brackets
    return None if state in "ZX" else int(fields[18])


def alive(record: Record) -> bool:
    """Whether that very process still runs."""
    return start_time(record.pid) == record.started


class Daemons:
    """The daemons of one cluster."""

    def __init__(self, paths: Paths) -> None:
        self._paths = paths
        self._file = paths.state / "processes.json"

    def records(self) -> list[Record]:
        """What was started, in order, whether it still runs or not."""
        try:
            return [Record(**entry) for entry in json.loads(self._file.read_text())]
        except FileNotFoundError:
            return []

    def _save(self, records: list[Record]) -> None:
        write(self._file, json.dumps([asdict(record) for record in records]))

    def log(self, name: str) -> Path:
        """The daemon's output."""
        return self._paths.logs / f"{name}.log"

    def running(self, name: str) -> bool:
        """Whether the daemon of that name runs."""
        return any(record.name == name and alive(record) for record in self.records())

    def start(self, name: str, command: Sequence[str | Path], env: Mapping[str, str] | None = None) -> None:
        """Start a daemon unless it runs already.

        `nsenter`, because `ip netns exec` mounts another /sys, in which the kubelet finds no cgroups.
        """
        if self.running(name):
            return
        words = [str(word) for word in command]
        script = 'echo $$ > "$1" && shift && exec "$@"'
        enter = ["nsenter", f"--net={self._paths.netns}", "--"]
        procs = str(cgroups.tracker() / "cgroup.procs")
        self._paths.logs.mkdir(parents=True, exist_ok=True)
        with self.log(name).open("ab") as log:
            process = subprocess.Popen(
                ["/bin/sh", "-c", script, "sh", procs, *enter, *words],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=self._paths.state,
                env={**os.environ, **(env or {})},
                start_new_session=True,
            )
        started = start_time(process.pid)
        if started is None:
            raise ClusterError(f"{name} ended at once\n{tail_file(self.log(name))}")
        others = [record for record in self.records() if record.name != name]
        self._save([*others, Record(name, process.pid, started)])

    def check(self) -> None:
        """ClusterError, with the end of its log, for the first daemon that was started and runs no more."""
        for record in self.records():
            if not alive(record):
                raise ClusterError(f"{record.name} ended; end of its log:\n{tail_file(self.log(record.name))}")

    def wait_ready(self, name: str, ready: Callable[[], bool], timeout: float = 180) -> None:
        """Wait until a component answers; what is late, or a daemon that dies meanwhile, is named with its log."""
        deadline = time.monotonic() + timeout
        while not attempt(ready):
            self.check()
            if time.monotonic() > deadline:
                raise ClusterError(f"{name}: not ready after {timeout:.0f} s\n{tail_file(self.log(name))}")
            time.sleep(0.1)
        say(f"{name} is ready")

    def stop(self, names: Sequence[str] | None = None, timeout: float = 3) -> None:
        """End daemons (all, by default): SIGTERM, and SIGKILL to those that take longer than the timeout."""
        chosen = [record for record in self.records() if names is None or record.name in names]
        for number in (signal.SIGTERM, signal.SIGKILL):
            for record in chosen:
                _signal(record, number)
            deadline = time.monotonic() + timeout
            while any(alive(record) for record in chosen) and time.monotonic() < deadline:
                time.sleep(0.02)
        if left := [record.name for record in chosen if alive(record)]:
            raise ClusterError(f"do not die: {', '.join(left)}")
        if names is not None:  # ended on purpose: nothing for `check` to miss
            self._save([record for record in self.records() if record not in chosen])


def _signal(record: Record, number: signal.Signals) -> None:
    if alive(record):
        with contextlib.suppress(ProcessLookupError):
            os.kill(record.pid, number)
