"""The stack of a process that is stuck, from outside: py-spy, else the process's own answer to SIGUSR1.

py-spy reads the memory of another process: it works on one that is stopped, or sits in C code. It needs no capability
where both run as one user, as all containers of a pod here do, unless a seccomp profile forbids it; faulthandler's
answer needs the process to run.
"""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

LIMIT_SECONDS = 15.0
_STATES = {
    "T": "it is stopped (by a signal)",
    "t": "it is stopped (by a debugger)",
    "D": "it waits for a device or disk",
    "Z": "it has ended",
}


def dump(pid: int, answers: str) -> str:
    """State and stacks of a process on this machine. `answers`: the file that it writes on SIGUSR1."""
    head = f"process {pid}: {_state(pid)}"
    return "\n".join([head, _py_spy(pid) or _asked(pid, Path(answers))])


def _state(pid: int) -> str:
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8")
    except OSError:
        return "it is gone"
    state = text.rpartition(")")[2].split()[0]
    return _STATES.get(state, f"state {state}")


def _py_spy(pid: int) -> str | None:
    beside = Path(sys.executable).with_name("py-spy")
    program = str(beside) if beside.exists() else shutil.which("py-spy")
    if program is None:
        return None
    command = [program, "dump", "--nonblocking", "--pid", str(pid)]
    with contextlib.suppress(OSError, subprocess.TimeoutExpired):
        done = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT_SECONDS, check=False)
        if done.returncode == 0 and done.stdout.strip():
            return done.stdout.strip()
    return None


def _asked(pid: int, answers: Path) -> str:
    before = answers.stat().st_size if answers.exists() else 0
    try:
        os.kill(pid, signal.SIGUSR1)
    except OSError as error:
        return f"no stack: {error}"
    deadline = time.monotonic() + 3.0
    while time.monotonic() < deadline:
        time.sleep(0.2)
        if answers.exists() and answers.stat().st_size > before:
            time.sleep(0.2)
            return answers.read_text(encoding="utf-8", errors="replace")[before:].strip()
    return "no stack: py-spy is not there or may not read the process, and it does not answer SIGUSR1"
