"""What trackers have in common."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol


@dataclass(frozen=True)
class RunFacts:
    """What a tracker may know of the run."""

    job: str
    incarnation: str
    job_dir: Path
    directory: Path
    """The incarnation's own directory."""
    config: Mapping[str, Any]
    """The fields of the spec that decide what is learned, by dotted path. No secrets, no pods."""
    resumed_step: int | None = None
    """Steps in the commit that this attempt starts from; None for a first attempt."""
    known: Mapping[str, str] = field(default_factory=dict)
    """What trackers of earlier attempts returned from `start`, by tracker."""


@dataclass(frozen=True)
class Completion:
    """One sample for people to read."""

    rollout: int
    group: int
    index: int
    prompt: str
    response: str
    label: str
    status: str
    reward: float | None
    reward_parts: Mapping[str, float]
    advantage: float | None
    policy_versions: Sequence[int]
    """Versions of the weights that made its tokens."""


class Tracker(Protocol):
    """Where numbers are sent to. Every method may raise: the caller reports it once and goes on without the tracker.

    All are called from one thread. Nothing is sent before `start`.
    """

    name: str

    def start(self) -> str | None:
        """Open the run, or the run of the attempts before. Returns what the next attempt needs to find it."""
        ...

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Numbers after `step` steps. Steps never decrease within an attempt; several calls may have the same."""
        ...

    def completions(self, step: int, name: str, rows: Sequence[Completion]) -> None:
        """Samples after `step` steps; `name`: train, or the evaluation that they were made for."""
        ...

    def close(self, succeeded: bool) -> None:
        """Send what is left and end the run. `succeeded`: the job is done, and no attempt follows."""
        ...


COLUMNS = ("rollout", "group", "index", "prompt", "response", "label", "status", "reward", "advantage", "versions")


def as_row(completion: Completion) -> list[Any]:
    """A completion under `COLUMNS`."""
    return [
        completion.rollout, completion.group, completion.index, completion.prompt, completion.response,
        completion.label, completion.status, completion.reward, completion.advantage,
        ", ".join(map(str, completion.policy_versions)),
    ]  # fmt: skip
