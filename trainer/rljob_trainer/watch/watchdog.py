"""The driver's watch over everybody it waits for."""

import logging
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rljob_api.v1alpha1.health import StallLimits

from rljob_trainer.watch import stacks
from rljob_trainer.watch.pulse import Beat, Pulse, pulse_file, read, stack_file
from rljob_trainer.watch.stalls import DRIVER, Picture, Stall, Waiting, stalls

logger = logging.getLogger(__name__)
LOOK_SECONDS = 2.0
HEAD_LINES = 30
"""Lines of a stack that go to the log; the file has all."""


class Waits:
    """What the driver waits for now. Filled by whoever waits, read by the watchdog's thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._waits: dict[int, Waiting] = {}
        self._next = 0
        self._forgotten: set[str] = set()
        self.lost: Mapping[str, Stall] = {}
        """Those that have been silent for longer than `giveUpSeconds`."""

    def forget(self, name: str) -> None:
        """`name` is replaced: what was heard of the one before counts no more."""
        with self._lock:
            self._forgotten.add(name)
            self.lost = {who: stall for who, stall in self.lost.items() if who != name}

    def forgotten(self) -> set[str]:
        """Those that were replaced since the last call."""
        with self._lock:
            names, self._forgotten = self._forgotten, set()
            return names

    @contextmanager
    def waiting(self, who: list[str], doing: str, since: float | None = None) -> Iterator[Callable[[str], None]]:
        """While the block runs, `who` are waited for (since now, or `since`); the given function takes one off."""
        keys: dict[str, int] = {}
        with self._lock:
            for name in who:
                self._next += 1
                keys[name] = self._next
                self._waits[self._next] = Waiting(name, doing, time.monotonic() if since is None else since)

        def done(name: str) -> None:
            with self._lock:
                self._waits.pop(keys.get(name, -1), None)

        try:
            yield done
        finally:
            for name in who:
                done(name)

    def now(self) -> list[Waiting]:
        """All of them."""
        with self._lock:
            return list(self._waits.values())


WAITS = Waits()
"""The driver's own: it is one process with one loop."""


class Watchdog:
    """Looks every few seconds in a thread of its own; `tell` is given who is stuck, or None once nobody is."""

    def __init__(
        self,
        directory: Path,
        limits: StallLimits,
        tell: Callable[[Stall | None, str], None],
        waits: Waits = WAITS,
        fetch: Callable[[Beat, Path], str] | None = None,
    ) -> None:
        """`directory`: the incarnation's own. `tell(stall, path of the stack)`."""
        self.pulses = directory / "pulse"
        self._stacks = directory / "stacks"
        self._limits, self._tell, self._waits, self._fetch = limits, tell, waits, fetch or fetch_stack
        self._picture = Picture()
        self._told: tuple[str, str] | None = None
        self._pulse = Pulse(self.pulses, DRIVER)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="watchdog", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop watching."""
        self._stop.set()
        self._thread.join(timeout=5.0)
        self._waits.lost = {}
        self._pulse.close()

    def _run(self) -> None:
        while not self._stop.wait(LOOK_SECONDS):
            try:
                self._look(time.monotonic())
            except Exception:  # the watch must outlive whatever a broken file or node does to it
                logger.exception("the watchdog could not look")

    def _look(self, now: float) -> None:
        for name in self._waits.forgotten():
            pulse_file(self.pulses, name).unlink(missing_ok=True)
            self._picture = self._picture.forget(name)
        self._picture = self._picture.after(read(self.pulses), now)
        found = stalls(self._picture, self._waits.now(), now, self._limits)
        self._waits.lost = {stall.who: stall for stall in found if stall.silent > self._limits.give_up_seconds}
        first = found[0] if found else None
        key = (first.who, first.doing) if first else None
        if key == self._told:
            return
        self._told = key
        if first is None:
            self._tell(None, "")
            return
        logger.error("stalled: %s", first.sentence())
        self._tell(first, "")  # at once: fetching the stack may take a while
        self._tell(first, self._keep_stack(first))

    def _keep_stack(self, stall: Stall) -> str:
        seen = self._picture.seen.get(stall.who)
        if seen is None or stall.who == DRIVER:
            return ""
        text = self._fetch(seen.beat, self.pulses)
        self._stacks.mkdir(exist_ok=True)
        path = self._stacks / f"{stall.who.replace(' ', '-')}-{time.strftime('%H%M%S', time.gmtime())}.txt"
        path.write_text(f"{stall.sentence()}\n\n{text}\n", encoding="utf-8")
        logger.error("stack of %s (whole in %s):\n%s", stall.who, path, "\n".join(text.splitlines()[:HEAD_LINES]))
        return str(path)


def fetch_stack(beat: Beat, pulses: Path) -> str:
    """The stack of a process, here or, through Ray, on its own node."""
    answers = str(stack_file(pulses, beat.name))
    if beat.host == socket.gethostname():
        return stacks.dump(beat.pid, answers)
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    options: dict[str, Any] = {
        "num_cpus": 0,
        "max_retries": 0,
        "scheduling_strategy": NodeAffinitySchedulingStrategy(beat.node, soft=False),
    }
    call = ray.remote(stacks.dump).options(**options).remote(beat.pid, answers)
    try:
        return str(ray.get(call, timeout=60.0))
    except Exception as error:  # noqa: BLE001 - whatever is wrong with that node: said in place of the stack
        return f"no stack: {beat.host} could not be asked: {type(error).__name__}: {str(error).splitlines()[0]}"
