"""Waiting for a cluster to get somewhere, always with a limit."""

import os
import time
from collections.abc import Callable

PATIENCE = float(os.environ.get("RLJOB_E2E_PATIENCE") or 1.0)
"""Factor of all limits, for a slow machine or several jobs at once. Limits end what hangs; they judge no speed."""


def wait_for[T](what: str, probe: Callable[[], T], *, seconds: float, every: float = 1.0) -> T:
    """The first truthy answer of `probe`, within `seconds` (times PATIENCE). Raises TimeoutError naming `what` and the
    last answer."""
    seconds *= PATIENCE
    end = time.monotonic() + seconds
    while True:
        answer = probe()
        if answer:
            return answer
        if time.monotonic() > end:
            raise TimeoutError(f"{what}: not within {seconds:.0f} s; last answer: {answer!r}")
        time.sleep(every)
