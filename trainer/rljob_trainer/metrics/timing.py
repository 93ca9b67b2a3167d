"""Where the time of a step goes: the phases of the loop, and idle for what none of them took."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal, get_args

Phase = Literal["generate", "reward", "train", "sync", "commit", "evaluate"]
PHASES: tuple[Phase, ...] = get_args(Phase)


class PhaseTimer:
    """Adds up wall-clock seconds by phase between two calls of `take`."""

    def __init__(self) -> None:
        self._start = time.monotonic()
        self._seconds: dict[str, float] = {}

    @contextmanager
    def phase(self, name: Phase) -> Iterator[None]:
        """Count the time of the block to `name`."""
        start = time.monotonic()
        try:
            yield
        finally:
            self._seconds[name] = self._seconds.get(name, 0.0) + time.monotonic() - start

    def seconds(self, name: Phase) -> float:
        """Seconds counted to `name` since the last `take`."""
        return self._seconds.get(name, 0.0)

    def take(self) -> dict[str, float]:
        """Seconds by phase since the last call, with `idle` and `total`; starts anew."""
        now = time.monotonic()
        total = now - self._start
        seconds: dict[str, float] = {phase: self._seconds.get(phase, 0.0) for phase in PHASES}
        seconds["idle"] = max(0.0, total - sum(seconds.values()))
        seconds["total"] = total
        self._start, self._seconds = now, {}
        return seconds
