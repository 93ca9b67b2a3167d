"""Which status may wait a little: one that counts pods differently, and says nothing else that is new.

Pods come up one after the other, and each of them would cost a write. What a plan does next never depends on such a
status, so nothing is lost when the operator dies in between: the next look finds the same again.
"""

import time
from collections.abc import Callable, Mapping
from typing import Any

_COUNTS = frozenset({"head", "trainer", "rollout", "retriever", "rolloutReplicas", "message", "preparation"})


class StatusThrottle[K]:
    """Statuses that wait, by job."""

    def __init__(self, seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
        """At most `seconds` late."""
        self._seconds, self._clock = seconds, clock
        self._since: dict[K, float] = {}

    def left(self, key: K, old: Mapping[str, Any], new: Mapping[str, Any]) -> float:
        """Seconds for which the new status of a job may wait for more; 0: it is to be written now."""
        if not only_counts(old, new):
            self._since.pop(key, None)
            return 0.0
        left = self._since.setdefault(key, self._clock()) + self._seconds - self._clock()
        if left <= 0:
            del self._since[key]
        return max(0.0, left)

    def forget(self, key: K) -> None:
        """Nothing waits for this job any more."""
        self._since.pop(key, None)


def only_counts(old: Mapping[str, Any], new: Mapping[str, Any]) -> bool:
    """Whether two statuses of a job differ in counts of pods, and the words about them, alone."""
    if any(old.get(key) != new.get(key) for key in (old.keys() | new.keys()) - _COUNTS - {"conditions"}):
        return False
    return _bare(old) == _bare(new)


def _bare(status: Mapping[str, Any]) -> list[dict[str, Any]]:
    return [
        {key: value for key, value in condition.items() if key != "message"}
        for condition in status.get("conditions") or []
    ]
