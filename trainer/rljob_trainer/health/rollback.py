"""Rollbacks: which commit to go back to, and the record that makes it hold.

A rollback ends the attempt. Its record, a file in the incarnation's folder, names the commit to go on from and where
the data stood; every later attempt that would resume from a commit made after that one finds the record and starts
from the named commit instead, whatever it was told. So it holds although the operator, or the driver, may be killed
at any moment. The number of rollbacks salts the seeds, and the data goes on where it stood: the same condition does
not simply come again.
"""

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from rljob_trainer.checkpoint import Commit
from rljob_trainer.checkpoint.files import write_json_atomic

FILE = "rollback.json"


@dataclass(frozen=True)
class Rollback:
    """One rollback."""

    number: int
    """Counts from 1."""
    incarnation: str
    """Whose attempt ended with it."""
    target: str
    """Name of the commit to go on from; empty: begin anew."""
    stage: str
    """Stage of the run when the condition was found."""
    data: dict[str, Any] = field(default_factory=dict)
    """Cursor of the prompts when the condition was found: they go on from there."""
    why: str = ""

    def write(self, job_dir: Path) -> None:
        """Make it durable."""
        write_json_atomic(job_dir / "attempts" / self.incarnation / FILE, asdict(self))


def rollbacks(job_dir: Path) -> list[Rollback]:
    """All rollbacks of a job, in order."""
    paths = job_dir.glob(f"attempts/*/{FILE}")
    return sorted(
        (Rollback(**json.loads(path.read_text(encoding="utf-8"))) for path in paths), key=lambda one: one.number
    )


def standing(commit: Commit | None, records: Sequence[Rollback]) -> Rollback | None:
    """The rollback that stands against going on from `commit`: the last one, unless the commit was made after it."""
    last = records[-1] if records else None
    if last is None or commit is None:
        return last
    return last if _attempt(commit.incarnation) <= _attempt(last.incarnation) else None


def before(commits: Iterable[tuple[Commit, int, bool]], since: int) -> Commit | None:
    """The newest commit from before a condition. `commits`: (commit, rollouts it holds, whether it was healthy), oldest
    first; `since`: the first rollout that shows it."""
    good = [commit for commit, rollouts, healthy in commits if healthy and rollouts < max(since, 1)]
    return good[-1] if good else None


def guarded(rollouts: Sequence[int], now: int, window: int) -> set[int]:
    """Of commits that hold so many `rollouts`, those to keep for a rollback: the newest that is `window` rollouts old
    by `now`, and the next one, which takes its place in time."""
    old = [count for count in rollouts if count <= now - window]
    first = max(old) if old else min(rollouts, default=now)
    later = [count for count in rollouts if count > first]
    return {first, min(later)} if later else {first}


def _attempt(incarnation: str) -> int:
    return int(incarnation.split("-")[0])
