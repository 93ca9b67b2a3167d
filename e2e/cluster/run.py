"""Running commands, progress lines, locks, bounded waits."""

from __future__ import annotations

import fcntl
import os
import selectors
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

_started = time.monotonic()

# A word of a command line.
Word = str | Path


class ClusterError(Exception):
    """Something the user has to know; printed without a traceback."""


def say(text: str) -> None:
    """Print a progress line with the seconds since the program began, to stderr."""
    print(f"[{time.monotonic() - _started:6.1f}s] {text}", file=sys.stderr, flush=True)


def tail(text: str, lines: int = 25) -> str:
    """The last lines of a text."""
    return "\n".join(text.rstrip().splitlines()[-lines:])


def tail_file(path: Path, lines: int = 25) -> str:
    """The last lines of a file, which may be missing or large."""
    try:
        with path.open("rb") as file:
            file.seek(0, os.SEEK_END)
            file.seek(max(0, file.tell() - 64 * 1024))
            return tail(file.read().decode(errors="replace"), lines)
    except FileNotFoundError:
        return "(no log)"


def run(
    command: Sequence[Word],
    *,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    stdin: str | None = None,
    timeout: float = 300,
    check: bool = True,
) -> subprocess.CompletedProcess[str]:
    """Run a command, capture its output, and raise ClusterError with the tail of it when it fails."""
    words = [str(word) for word in command]
    full_env = {**os.environ, **env} if env else None
    try:
        done = subprocess.run(
            words,
            env=full_env,
            cwd=cwd,
            input=stdin,
            timeout=timeout,
            text=True,
            capture_output=True,
            check=False,
        )
    except FileNotFoundError as error:
        raise ClusterError(f"{words[0]}: not found") from error
    except subprocess.TimeoutExpired as error:
        raise ClusterError(f"{' '.join(words[:4])} …: not finished after {timeout:.0f} s") from error
    if check and done.returncode != 0:
        raise ClusterError(f"{' '.join(words[:6])} …: exit code {done.returncode}\n{tail(done.stdout + done.stderr)}")
    return done


def run_counting(
    command: Sequence[Word],
    count: Callable[[int], str],
    *,
    env: Mapping[str, str],
    cwd: Path,
    timeout: float,
    every: float = 30.0,
) -> None:
    """Run a command that prints a line to stderr for each thing done, and say `count(lines)` every so many seconds.

    Raises ClusterError with the last lines when it fails or takes longer than `timeout` seconds.
    """
    words = [str(word) for word in command]
    printed, lines, said, end = b"", 0, time.monotonic(), time.monotonic() + timeout
    try:
        process = subprocess.Popen(
            words, env={**os.environ, **env}, cwd=cwd, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
        )
    except FileNotFoundError as error:
        raise ClusterError(f"{words[0]}: not found") from error
    with process, selectors.DefaultSelector() as selector:
        assert process.stderr is not None
        selector.register(process.stderr, selectors.EVENT_READ)
        while True:
            if selector.select(1.0):
                if not (chunk := os.read(process.stderr.fileno(), 65536)):
                    break
                lines += chunk.count(b"\n")
                printed = (printed + chunk)[-8192:]
            if time.monotonic() > end:
                process.kill()
                raise ClusterError(f"{' '.join(words[:4])} …: not finished after {timeout:.0f} s")
            if time.monotonic() - said >= every:
                said = time.monotonic()
                say(count(lines))
    if process.returncode:
        said_last = tail(printed.decode(errors="replace"))
        raise ClusterError(f"{' '.join(words[:6])} …: exit code {process.returncode}\n{said_last}")


def succeeds(command: Sequence[Word], timeout: float = 20) -> bool:
    """Whether a command ends well in time."""
    try:
        return run(command, timeout=timeout, check=False).returncode == 0
    except ClusterError:
        return False


def attempt(ready: Callable[[], bool]) -> bool:
    """Whether something is ready; an error on the way (an apiserver that is busy, say) means not yet."""
    try:
        return ready()
    except ClusterError:
        return False


def wait_for(what: str, ready: Callable[[], bool], timeout: float, interval: float = 0.2) -> None:
    """Poll until ready() holds; ClusterError naming what was awaited when it does not in time."""
    deadline = time.monotonic() + timeout
    while not attempt(ready):
        if time.monotonic() > deadline:
            raise ClusterError(f"{what}: not there after {timeout:.0f} s")
        time.sleep(interval)


@contextmanager
def lock(path: Path) -> Iterator[None]:
    """Hold an exclusive lock file; the kernel lets go of it when the process dies."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say(f"waiting for another run to let go of {path.name}")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def write(path: Path, text: str, mode: int = 0o644) -> Path:
    """Write a file with a mode from the first byte on, atomically."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.unlink(missing_ok=True)
    with open(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "w") as file:
        file.write(text)
    temporary.rename(path)
    return path
