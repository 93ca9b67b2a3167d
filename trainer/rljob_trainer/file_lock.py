"""A lock between processes that share a folder."""

import fcntl
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rljob_api.errors import UserError

_POLL_SECONDS = 0.1


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
