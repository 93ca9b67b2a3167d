"""The health of an engine as a state machine, a pure function of what happened and when.

    starting ──ready──▶ serving ◀──synced── syncing
        │                  │  ───sync────▶     │
        └──────────────────┴──── lost ─────────┴──▶ dead

Patience is its own thing: an engine compiles kernels when it starts and again for its first requests, and is not taken
for stuck because it does not answer meanwhile.
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


COMPILING_SECONDS = 600.0
"""How long an engine that has not answered a request yet may be silent."""


@dataclass(frozen=True, slots=True)
class Health:
    """State, since when, and the last sign of life. Times are of one monotonic clock, in seconds."""

    state: State
    since: float
    heard: float
    why: str = ""
    answered: bool = False
    """Whether it has answered a request: what its first ones compile is compiled."""

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
        return Health(after, now, now, why, self.answered)

    def alive(self, now: float) -> "Health":
        """After a sign of life."""
        return self if self.state == "dead" else replace(self, heard=max(now, self.heard))

    def answer(self, now: float) -> "Health":
        """After the answer to a request."""
        return self if self.state == "dead" else replace(self.alive(now), answered=True)

    def overdue(self, now: float, patience: float) -> float | None:
        """Seconds of silence when they are more than `patience` (more than COMPILING_SECONDS until the first answer),
        else None. Only for an engine with requests under way: an idle one has nothing to say."""
        silence = now - self.heard
        limit = patience if self.answered else max(patience, COMPILING_SECONDS)
        return silence if self.state != "dead" and silence > limit else None

    @property
    def serves(self) -> bool:
        """Whether samples may be sent to it."""
        return self.state == "serving"
