"""Which engines there are, while they come and go: the operator asks, the group follows where nothing can be lost.

An engine that is to go is closed: it gets no new samples, finishes what it has, and ends; only then is its pod named as
drained, and the operator takes it away. A new one is started beside the work and joins with the current weights. Which
engine makes a sample decides nothing of the sample, so results do not depend on their number.
"""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

from rljob_api.contract.request import ScaleRequest

CLOSED_LOAD = 10**9
"""Load of an engine that takes no samples: any other has less to do."""
ScaleWish = Callable[[], ScaleRequest | None]
"""What the operator wants now."""


@dataclass
class Roster:
    """The state of every engine, by its number. Numbers of engines that are gone are given again."""

    size: int
    """Numbers given so far."""
    pods: dict[int, str] = field(default_factory=dict)
    """Where each engine runs; empty names on a laptop."""
    closed: set[int] = field(default_factory=set)
    """Take no new samples."""
    gone: set[int] = field(default_factory=set)
    """Have ended."""
    joining: set[int] = field(default_factory=set)
    """Start, and serve nothing yet."""
    busy: Counter[int] = field(default_factory=Counter)
    """Calls under way."""

    @property
    def serving(self) -> list[int]:
        """Engines that hold weights: open ones, and closed ones that still have work."""
        return [index for index in range(self.size) if index not in self.gone | self.joining]

    @property
    def open(self) -> list[int]:
        """Engines that take samples."""
        return [index for index in self.serving if index not in self.closed]

    def loads(self, under_way: list[int]) -> list[int]:
        """What routing may assume of each engine, `under_way` being the samples it has."""
        takes = set(self.open)
        return [load if index in takes else CLOSED_LOAD for index, load in enumerate(under_way)]

    def close(self, request: ScaleRequest) -> None:
        """Close the engines on pods that are to go, never the last one; open again what is not asked for any more."""
        self.closed = {index for index in self.closed if index in self.gone or self.pods.get(index) in request.drain}
        for index in self.open:
            if self.pods.get(index) in request.drain and len(self.open) > 1:
                self.closed.add(index)

    def idle(self) -> list[int]:
        """Closed engines without work: these may end."""
        return sorted(index for index in self.closed - self.gone if not self.busy[index])

    def end(self, index: int) -> None:
        """An engine has ended, for good."""
        self.joining.discard(index)
        self.closed.add(index)
        self.gone.add(index)

    def missing(self, request: ScaleRequest) -> int:
        """Engines to be started."""
        return max(0, request.engines - len(self.open) - len(self.joining))

    def take_number(self) -> int:
        """A number for a new engine."""
        if self.gone:
            index = min(self.gone)
            self.gone.discard(index)
            self.closed.discard(index)
        else:
            index, self.size = self.size, self.size + 1
        self.pods.pop(index, None)
        self.joining.add(index)
        return index

    def report(self, request: ScaleRequest | None) -> dict[str, list[str]]:
        """For the progress: pods whose engines serve, and pods that were drained as asked."""
        serving = sorted({self.pods.get(index, "") for index in self.serving} - {""})
        asked = request.drain if request else frozenset()
        return {"serving": serving, "drained": sorted(asked - set(serving))}
