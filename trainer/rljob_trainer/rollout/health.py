"""The health of an engine as a state machine, a pure function of what happened and when.

    starting ──ready──▶ serving ◀──synced── syncing
        │                  │  ───sync────▶     │
        └──────────────────┴──── lost ─────────┴──▶ dead

A state has its own patience: an engine that starts compiles kernels and captures graphs, and is not taken for stuck
because it does not answer meanwhile.
"""

from dataclasses import dataclass, replace
from typing import Literal

State = Literal["starting", "serving", "syncing", "dead"]
Event = Literal["ready", "sync", "synced", "lost"]
_NEXT: dict[tuple[State, Event], State] = {
    ("starting", "ready"): "syncing",
    ("syncing", "synced"): "serving",
    ("serving", "sync"): "syncing",
    ("syncing", "sync"): "syncing",
    ("starting", "lost"): "dead",
    ("serving", "lost"): "dead",
    ("syncing", "lost"): "dead",
    ("dead", "lost"): "dead",
}


@dataclass(frozen=True, slots=True)
class Patience:
    """Seconds without a sign of life after which an engine is taken for lost, by state."""

    starting: float = 600.0
    serving: float = 120.0
    syncing: float = 600.0


@dataclass(frozen=True, slots=True)
class Health:
    """State, since when, and the last sign of life. Times are of one monotonic clock, in seconds."""

    state: State
    since: float
    heard: float
    why: str = ""

    @classmethod
    def begin(cls, now: float) -> "Health":
        """An engine that was just made."""
        return cls("starting", now, now)

    def on(self, event: Event, now: float, why: str = "") -> "Health":
        """The health after `event`. Raises ValueError for one that cannot happen in this state."""
        after = _NEXT.get((self.state, event))
        if after is None:
            raise ValueError(f"{event} cannot happen to an engine that is {self.state}")
        if self.state == "dead":
            return self
        return Health(after, now, now, why)

    def alive(self, now: float) -> "Health":
        """After a sign of life."""
        return self if self.state == "dead" else replace(self, heard=max(now, self.heard))

    def overdue(self, now: float, patience: Patience) -> float | None:
        """Seconds of silence when they are more than the state's patience, else None."""
        if self.state == "dead":
            return None
        silence = now - self.heard
        return silence if silence > getattr(patience, self.state) else None

    @property
    def serves(self) -> bool:
        """Whether samples may be sent to it."""
        return self.state == "serving"
