"""Stalls: who is stuck, a pure function of the pulses, what is waited for, and the time."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

from rljob_api.v1alpha1.health import StallLimits

from rljob_trainer.watch.pulse import Beat

DRIVER = "driver"
"""Name of the driver's own pulse."""
OWN_SECONDS = 10.0
"""The driver's own pulse may be this late, however short the limits are."""


@dataclass(frozen=True, slots=True)
class Waiting:
    """Something that the driver waits for."""

    who: str
    """`rank 0`, `engine 1`, or what has no pulse: `reward functions`."""
    doing: str
    since: float


@dataclass(frozen=True, slots=True)
class Stall:
    """Somebody who is stuck."""

    who: str
    doing: str
    seconds: float
    """How long the driver has waited for it."""
    silent: float
    """Seconds without a sign of life; 0 when it gives them."""
    where: str

    def sentence(self) -> str:
        """For people."""
        what = f"no sign of life for {self.silent:.0f} s" if self.silent else "it has not moved"
        at = f", last at {self.where}" if self.where else ""
        return f"{self.who}: {self.doing} for {self.seconds:.0f} s; {what}{at}"


@dataclass(frozen=True, slots=True)
class Seen:
    """A process as the driver has seen it: its last pulse, and when (on the driver's clock) that, and its work, last
    changed."""

    beat: Beat
    heard: float
    worked: float


@dataclass(frozen=True)
class Picture:
    """All processes as they were last seen."""

    seen: Mapping[str, Seen] = field(default_factory=dict)

    def after(self, beats: Mapping[str, Beat], now: float) -> "Picture":
        """With what was read just now. Only changes count: clocks of different machines are never compared."""
        seen = dict(self.seen)
        for name, beat in beats.items():
            old = seen.get(name)
            if old is None or old.beat.pid != beat.pid:
                seen[name] = Seen(beat, now, now)
            elif old.beat.count != beat.count:
                worked = now if beat.work != old.beat.work else old.worked
                seen[name] = Seen(beat, now, worked)
        return Picture(seen)

    def forget(self, name: str) -> "Picture":
        """Without one that is replaced."""
        return replace(self, seen={who: seen for who, seen in self.seen.items() if who != name})


def stalls(picture: Picture, waits: Iterable[Waiting], now: float, limits: StallLimits) -> list[Stall]:
    """Who is stuck, the likeliest cause first.

    - silent: no pulse for `silentSeconds`, while it is waited for. Ranks that wait for it in a collective stand still
      as well, but they are its victims and not named.
    - still: it is waited for and its working thread (an engine: its count of tokens) has not moved for `stillSeconds`.
    - without a pulse: waited for longer than `stillSeconds`.

    Nothing is said while the driver's own pulse is late: then it is the directory that does not answer, or the driver.
    """
    mine = picture.seen.get(DRIVER)
    if mine is not None and now - mine.heard > max(limits.silent_seconds / 2, OWN_SECONDS):
        return [Stall("the job's directory", "taking the driver's pulse", now - mine.heard, now - mine.heard, "")]
    silent, still = [], []
    for wait in waits:
        seconds = now - wait.since
        seen = picture.seen.get(wait.who)
        if seen is None:
            if seconds > limits.still_seconds and not wait.who.startswith(("rank", "engine")):
                still.append(Stall(wait.who, wait.doing, seconds, 0.0, ""))
            continue
        quiet = now - max(seen.heard, wait.since)
        if quiet > limits.silent_seconds:
            silent.append(Stall(wait.who, wait.doing, seconds, quiet, seen.beat.where))
        elif seconds > limits.still_seconds and _stands(seen, now) > limits.still_seconds:
            still.append(Stall(wait.who, wait.doing, seconds, 0.0, seen.beat.where))
    return silent or still


def _stands(seen: Seen, now: float) -> float:
    """Seconds without movement: of an engine its work, of a rank its thread."""
    return now - seen.worked if seen.beat.name.startswith("engine") else seen.beat.still
