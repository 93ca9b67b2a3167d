"""Where the training turn gets its rollouts from: one interface, generating before training or beside it."""

from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol

from rljob.types import Sample

from rljob_trainer.metrics.timing import Phase


class RolloutFailedError(RuntimeError):
    """A rollout did not come to its end in time, or none of its samples can be trained on."""


@dataclass(frozen=True)
class Rollout:
    """The samples of one training turn."""

    samples: list[Sample]
    """Scored, groups numbered from 0."""
    generated: int
    """Tokens generated for this rollout, those of dropped samples included."""
    metrics: dict[str, float]


class RolloutSource(Protocol):
    """One turn calls, in this order: `next`, `before_training`, training, `before_sync`, `trained`, the sync, `served`,
    `position`. `discard`, then `position`, takes the place of what follows training when a step is not finite."""

    generating: tuple[Phase, ...]
    """Phases of a turn in which engines generate for training; tokens a second are counted over them."""

    def running(self) -> AbstractContextManager[None]:
        """Around all turns of a run."""
        ...

    def next(self) -> Rollout:
        """Wait (bounded) for the next rollout. Raises UserError when the filter leaves too little."""
        ...

    def before_training(self) -> None:
        """From here on the ranks' weights are not those that are served."""
        ...

    def discard(self) -> None:
        """The rollout given last will not be trained: another takes its place, from other prompts."""
        ...

    def before_sync(self) -> None:
        """The step is over and new weights would interrupt what is generated: a moment to let it end."""
        ...

    def trained(self) -> None:
        """The rollout given last is trained; the engines have not got the weights yet."""
        ...

    def served(self) -> None:
        """The engines serve the new weights."""
        ...

    def position(self) -> tuple[dict[str, Any], list[dict[str, Any]]]:
        """What a commit holds of the source: the cursor of the prompts, and what waits for the next rollout; see
        `LoopState.data` and `LoopState.pending`."""
        ...

    def take_busy_seconds(self) -> float | None:
        """Seconds in which engines generated beside the loop since the last call; None where they never do."""
        ...
