"""Waiting for a cluster to get somewhere, always with a limit."""

import time
from collections.abc import Callable


def wait_for[T](what: str, probe: Callable[[], T], *, seconds: float, every: float = 1.0) -> T:
    """The first truthy answer of `probe`. Raises TimeoutError naming `what` and the last answer."""
    end = time.monotonic() + seconds
    while True:
        answer = probe()
        if answer:
            return answer
        if time.monotonic() > end:
            raise TimeoutError(f"{what}: not within {seconds:.0f} s; last answer: {answer!r}")
        time.sleep(every)
