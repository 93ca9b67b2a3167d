"""What a person sees while a job runs: a live panel on a terminal, plain lines elsewhere."""

import logging
import sys
import time
from typing import Protocol, TextIO, cast

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from rljob_trainer.logs import LineLogger, on_cluster

_BARS = "▁▂▃▄▅▆▇█"


def sparkline(values: list[float], width: int = 40) -> str:
    """The last `width` values as block characters between their minimum and maximum."""
    shown = values[-width:]
    if not shown:
        return ""
    low, high = min(shown), max(shown)
    span = high - low
    return "".join(_BARS[int((value - low) / span * (len(_BARS) - 1))] if span > 0 else _BARS[0] for value in shown)


class Display(Protocol):
    """Shows the run's progress."""

    def stage(self, name: str, done: int, total: int) -> None:
        """The stage `name` stands at `done` of `total` steps."""
        ...

    def values(self, kind: str, step: int, values: dict[str, float]) -> None:
        """Numbers of one step: `kind` is sft or rl."""
        ...

    def evaluation(self, name: str, score: float) -> None:
        """A score of an evaluation set."""
        ...

    def message(self, text: str) -> None:
        """One line for a person."""
        ...

    def close(self) -> None:
        """Stop drawing."""
        ...


_SHOWN = ("reward", "loss", "em", "kl", "entropy", "grad_norm", "tokens_per_second", "response_length")


def _line(values: dict[str, float]) -> str:
    names = {"tokens_per_second": "tok/s", "grad_norm": "grad", "response_length": "length"}
    parts = []
    for key in _SHOWN:
        if key in values:
            value = values[key]
            parts.append(
                f"{names.get(key, key)} {value:.0f}" if abs(value) >= 100 else f"{names.get(key, key)} {value:.3f}"
            )
    if failures := values.get("reward_failures"):
        parts.append(f"reward failures {failures:.0f}")
    return "  ".join(parts)


class PlainDisplay:
    """One line per report; steps at most every `interval` seconds."""

    def __init__(self, out: TextIO | None = None, interval: float = 5.0) -> None:
        self._out = out or sys.stdout
        self._interval = interval
        self._last = -interval
        self._stage = ""
        self._done, self._total = 0, 0

    def stage(self, name: str, done: int, total: int) -> None:
        """See Display."""
        changed = name != self._stage
        self._stage, self._done, self._total = name, done, total
        if changed:
            self._print(f"{name}: {total} steps" if total else name)

    def values(self, kind: str, step: int, values: dict[str, float]) -> None:
        """See Display."""
        now = time.monotonic()
        if now - self._last >= self._interval or self._done >= self._total:
            self._last = now
            self._print(f"{self._stage} {self._done}/{self._total}  {_line(values)}")

    def evaluation(self, name: str, score: float) -> None:
        """See Display."""
        self._print(f"evaluation {name}: {score:.3f}")

    def message(self, text: str) -> None:
        """See Display."""
        self._print(text)

    def close(self) -> None:
        """See Display."""
        self._out.flush()

    def _print(self, text: str) -> None:
        print(text, file=self._out, flush=True)


class LiveDisplay:
    """A panel that redraws itself: one bar per stage, the reward's course, the latest numbers and scores."""

    def __init__(self, title: str, console: Console | None = None) -> None:
        self._console = console or Console()
        self._title = title
        self._bars = Progress(
            TextColumn("[bold]{task.description:<9}"),
            BarColumn(bar_width=36),
            TextColumn("{task.fields[count]:>9}"),
            TimeElapsedColumn(),
            console=self._console,
        )
        self._tasks: dict[str, TaskID] = {}
        self._current: str | None = None
        self._rewards: list[float] = []
        self._latest: dict[str, float] = {}
        self._scores: dict[str, float] = {}
        self._live = Live(self._render(), console=self._console, refresh_per_second=4, transient=False)
        self._live.start()

    def stage(self, name: str, done: int, total: int) -> None:
        """See Display. A stage without steps fills its bar when the next one begins; the end has no bar."""
        if self._current is not None and self._current != name:
            last = self._tasks[self._current]
            self._bars.update(last, completed=self._bars.tasks[last].total or 0)
            self._bars.stop_task(last)
            self._current = None
        if name != "Done":
            if name not in self._tasks:
                self._tasks[name] = self._bars.add_task(name, total=total or 1, count="")
            self._current = name
            count = f"{done}/{total}" if total else ""
            self._bars.update(self._tasks[name], completed=done, total=total or 1, count=count)
        self._draw()

    def values(self, kind: str, step: int, values: dict[str, float]) -> None:
        """See Display."""
        self._latest = values
        if "reward" in values:
            self._rewards.append(values["reward"])
        self._draw()

    def evaluation(self, name: str, score: float) -> None:
        """See Display."""
        self._scores[name] = score
        self._draw()

    def message(self, text: str) -> None:
        """See Display."""
        self._console.print(Text(text))

    def close(self) -> None:
        """See Display."""
        self._draw()
        self._live.stop()

    def _draw(self) -> None:
        self._live.update(self._render())

    def _render(self) -> RenderableType:
        facts = Table.grid(padding=(0, 2))
        if self._latest:
            facts.add_row("now", _line(self._latest))
        if self._rewards:
            facts.add_row("reward", f"{sparkline(self._rewards)} {self._rewards[0]:.2f} → {self._rewards[-1]:.2f}")
        for name, score in self._scores.items():
            facts.add_row("score", f"{name} {score:.3f}")
        return Group(Text(self._title, style="bold"), self._bars, facts)


class QuietDisplay:
    """Shows nothing."""

    def stage(self, name: str, done: int, total: int) -> None:
        """See Display."""

    def values(self, kind: str, step: int, values: dict[str, float]) -> None:
        """See Display."""

    def evaluation(self, name: str, score: float) -> None:
        """See Display."""

    def message(self, text: str) -> None:
        """See Display."""

    def close(self) -> None:
        """See Display."""


def make_display(title: str, *, quiet: bool = False) -> Display:
    """A live panel when the output is a terminal, plain lines elsewhere."""
    if quiet:
        return QuietDisplay()
    if on_cluster():
        return PlainDisplay(cast(TextIO, LineLogger(logging.getLogger("rljob_trainer.progress"))))
    console = Console()
    return LiveDisplay(title, console) if console.is_terminal and not console.is_dumb_terminal else PlainDisplay()
