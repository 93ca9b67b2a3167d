"""Which prompts may be under way, and which are trained next, so that no sample lags too far behind: a pure ledger.

A group (a prompt with its samples) is *born* with the version of the weights that are served when it is started. It
may be trained in the step that makes version v + 1 out of v when v − born ≤ `max_staleness`. The ledger keeps this by
holding, at every version v and for every j in 0 … max_staleness,

    groups with born ≤ v − max_staleness + j   ≤   (j + 1) · batch

(earliest deadline first is feasible): it bounds how many are started, and makes the trainer wait for stragglers where
a batch of later ones would let them expire. `max_staleness` 0 is the synchronous loop; 1 is one step off (Noukhovitch
et al. 2024, arXiv:2410.18252).
"""

from collections.abc import Iterable


class Ledger:
    """Groups by their number, in the order they were started."""

    def __init__(self, batch: int, max_staleness: int) -> None:
        if batch < 1 or max_staleness < 0:
            raise ValueError(f"batches of {batch} groups, staleness {max_staleness}")
        self.batch, self.max_staleness = batch, max_staleness
        self._born: dict[int, int] = {}
        self._ready: list[int] = []
        self._training = False

    @property
    def pending(self) -> list[int]:
        """Groups that are started and not trained, in order of their number."""
        return sorted(self._born)

    @property
    def in_training(self) -> int:
        """Groups that were taken for the step that is not over yet."""
        return self.batch if self._training else 0

    @property
    def under_way(self) -> int:
        """Groups that are started and not finished."""
        return len(self._born) - len(self._ready)

    def room(self) -> int:
        """How many groups may be started now. Those in training count until their step is over (`trained`): what is
        started before is a version older than what is started after it."""
        return (self.max_staleness + (not self._training)) * self.batch - len(self._born)

    def start(self, numbers: Iterable[int], version: int) -> None:
        """Groups that are started with `version` served. Raises ValueError beyond `room`, or for a number twice."""
        for number in numbers:
            if number in self._born or self.room() < 1:
                raise ValueError(f"group {number} cannot be started: {len(self._born)} are under way")
            self._born[number] = version

    def finish(self, number: int) -> None:
        """All samples of a group are there."""
        if number not in self._born or number in self._ready:
            raise ValueError(f"group {number} is not under way")
        self._ready.append(number)

    def drop(self, number: int) -> None:
        """A group under way will not be trained: another may be started in its place."""
        if number not in self._born or number in self._ready:
            raise ValueError(f"group {number} is not under way")
        del self._born[number]

    def take(self, version: int) -> list[int] | None:
        """`next`, and these groups leave the ledger; tell it when the step is over."""
        chosen = self.next(version)
        if chosen is None:
            return None
        for number in chosen:
            del self._born[number]
            self._ready.remove(number)
        self._training = True
        return sorted(chosen)

    def next(self, version: int) -> list[int] | None:
        """The groups of the step that makes `version` + 1, the oldest of the finished ones first; None: wait."""
        if len(self._ready) < self.batch:
            return None
        order = {number: place for place, number in enumerate(self._ready)}
        chosen = sorted(self._ready, key=lambda number: (self._born[number], order[number]))[: self.batch]
        left = [born for number, born in self._born.items() if number not in set(chosen)]
        for later in range(self.max_staleness + 1):
            deadline = version + 1 - self.max_staleness + later
            if sum(born <= deadline for born in left) > (later + 1) * self.batch:
                return None
        if any(born < version + 1 - self.max_staleness for born in left):
            return None
        return chosen

    def trained(self) -> None:
        """The step is over, applied or given up: its groups count no more, and others may be started."""
        self._training = False
