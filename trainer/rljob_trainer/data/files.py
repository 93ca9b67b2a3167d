"""Small files that appear whole or not at all, and a lock between processes that share a folder."""

import fcntl
import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from rljob_api.manifest.errors import UserError

_POLL_SECONDS = 0.1


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file so that a reader sees the old content or the new, also after a crash."""
    descriptor, temporary = tempfile.mkstemp(prefix=f".{path.name}-", dir=path.parent)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            sync(file.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        with suppress(FileNotFoundError):
            os.unlink(temporary)
        raise


def sync(descriptor: int) -> None:
    """Bring a file's content to the disk."""
    os.fsync(descriptor)


@contextmanager
def exclusive(path: Path, timeout: float) -> Iterator[None]:
    """Hold the lock file `path`; it is released by the kernel when the process dies.

    Raises UserError when another process holds it for longer than `timeout` seconds.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    deadline = time.monotonic() + timeout
    with path.open("a") as file:
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise UserError(
                        f"{path} is held by another process for more than {timeout:.0f} s",
                        hint="another pod or run works on the same directory; end it, or wait for it",
                    ) from None
            time.sleep(_POLL_SECONDS)
        yield
