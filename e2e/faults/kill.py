"""The operator is SIGKILLed right before or right after its n-th write and started again: the end is the same."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from rljob_operator.kube.objects import Kind

from e2e.faults.access import Access
from e2e.faults.apiserver import Away
from e2e.faults.end_state import difference, end_state
from e2e.faults.process import Operator
from e2e.faults.proxy import Answer, Call, CutError, Fault, Proxy
from e2e.faults.stories import SETTINGS, STORIES, Cast
from e2e.faults.world import World

When = Literal["before", "after"]
NAMESPACE = Kind("v1", "Namespace", "namespaces")
CONVERGED_SECONDS = 120.0
REVIVED_SECONDS = 20.0
QUIET_SECONDS = 4.0
"""A state that holds for so long is an end."""


@dataclass(frozen=True)
class Point:
    """A moment to kill at."""

    story: str
    write: int
    when: When

    def __str__(self) -> str:
        return f"{self.story}: {self.when} write {self.write}"


@dataclass
class Outcome:
    """What came of one run."""

    point: Point | None
    writes: list[str]
    requests: int
    starts: int
    struck: str | None = None
    """The write at which the operator was killed."""
    problem: str | None = None
    seconds: float = 0.0
    by_method: Counter[str] = field(default_factory=Counter)
    """Requests by method, watches as WATCH."""


class Kill(Fault):
    """SIGKILL at one write: before it the apiserver never sees it, after it the operator never hears of it."""

    def __init__(self, point: Point, kill: Callable[[], None]) -> None:
        self._point, self._kill = point, kill
        self.struck = asyncio.Event()
        self.at: str | None = None

    async def before(self, call: Call) -> Answer | None:
        await self._strike(call, "before")
        return None

    async def after(self, call: Call, status: int) -> None:
        await self._strike(call, "after")

    async def _strike(self, call: Call, when: When) -> None:
        if call.write == self._point.write and when == self._point.when:
            self._kill()
            self.at = str(call)
            self.struck.set()
            raise CutError


class KillEveryWrite(Fault):
    """No operator outlives its first write that the apiserver has answered."""

    def __init__(self, kill: Callable[[], None]) -> None:
        self._kill = kill
        self.struck = asyncio.Event()

    async def before(self, call: Call) -> Answer | None:
        if self.struck.is_set() and call.write:
            raise CutError  # sent by a process that is dead already
        return None

    async def after(self, call: Call, status: int) -> None:
        if call.write and status < 400 and not self.struck.is_set():
            self._kill()
            self.struck.set()
            raise CutError


class Suite:
    """Runs of stories on one control plane, each in a namespace of its own with an operator of its own."""

    def __init__(self, access: Access, world: World, folder: Path) -> None:
        self._access, self._world, self.folder = access, world, folder
        self.undisturbed: dict[str, tuple[dict[str, Any], int]] = {}
        """By story: the end state and the number of writes."""
        self.requests: dict[str, int] = {}
        """By story: the number of requests."""

    async def learn(self, stories: Iterable[str]) -> list[Outcome]:
        """Run each story undisturbed, to know its end and its writes."""
        wanted = [name for name in stories if name not in self.undisturbed]
        return list(await asyncio.gather(*(self._learn(name) for name in wanted)))

    async def _learn(self, story: str) -> Outcome:
        async with Stage(self, story) as stage:
            await STORIES[story](stage.cast)
            state = await stage.settled()
            assert not (bad := self._world.fence_violations(stage.namespace)), bad
            self.undisturbed[story] = (state, len(stage.proxy.writes))
            self.requests[story] = stage.proxy.total
            return stage.outcome(None)

    def points(self, stories: Iterable[str]) -> list[Point]:
        """Every kill point of stories that have been learnt."""
        return [
            Point(story, n, when)
            for story in stories
            for n in range(1, self.undisturbed[story][1] + 1)
            for when in ("before", "after")
        ]

    async def endure(self, story: str, fault: Fault, **settings: Any) -> Outcome:
        """One run under a fault, from the operator's first request to its last; as kubelet does, an operator that
        ends by itself is started again."""
        async with Stage(self, story, seconds=180.0, fault=fault, **settings) as stage:
            supervision = asyncio.create_task(stage.supervise())
            try:
                problem = await self._run(stage)
            finally:
                supervision.cancel()
            outcome = stage.outcome(None)
            outcome.problem = problem
            return outcome

    async def strike(self, point: Point) -> Outcome:
        """One run with one kill."""
        async with Stage(self, point.story) as stage:
            fault = stage.proxy.fault = Kill(point, stage.operator.kill)
            revival = asyncio.create_task(stage.revive(fault.struck, once=True))
            try:
                problem = await self._run(stage)
            finally:
                revival.cancel()
            outcome = stage.outcome(point)
            outcome.struck, outcome.problem = fault.at, problem
            return outcome

    async def storm(self, story: str) -> Outcome:
        """One run in which every write is the last of the operator that made it."""
        async with Stage(self, story, seconds=240.0) as stage:
            fault = stage.proxy.fault = KillEveryWrite(stage.operator.kill)
            revival = asyncio.create_task(stage.revive(fault.struck, once=False))
            try:
                problem = await self._run(stage)
            finally:
                revival.cancel()
            outcome = stage.outcome(None)
            outcome.problem = problem
            return outcome

    async def _run(self, stage: Stage) -> str | None:
        """The story, then its end compared; what is wrong, or None."""
        try:
            await STORIES[stage.story](stage.cast)
            return await stage.compare()
        except (TimeoutError, AssertionError) as error:
            return f"{error}; steps taken: {', '.join(stage.cast.log)}; log: {stage.operator.log}"


class Stage:
    """A namespace with a proxy and an operator behind it, taken away afterwards."""

    def __init__(
        self, suite: Suite, story: str, *, seconds: float = 150.0, fault: Fault | None = None, **settings: Any
    ) -> None:
        self._suite, self.story = suite, story
        self.namespace = f"f-{story}-{uuid.uuid4().hex[:6]}"
        self.cast = Cast(suite._world, self.namespace, seconds)
        self.proxy = Proxy(suite._access, fault)
        if isinstance(fault, Away):
            fault.proxy = self.proxy
        self._settings = SETTINGS.get(story, {}) | settings
        self._begun = time.monotonic()

    async def __aenter__(self) -> Stage:
        self._serving = self.proxy.serving()
        await self._serving.__aenter__()
        manifest = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": self.namespace}}
        await self.cast.admin.raw("POST", NAMESPACE.path(None), manifest)
        self.operator = Operator(self.namespace, self.proxy.port, self._suite.folder, **self._settings)
        self.operator.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.operator.close()
        await self._serving.__aexit__(None, None, None)
        await self.cast.admin.tear_down(self.namespace)
        self.cast.world.forget(self.namespace)

    def outcome(self, point: Point | None) -> Outcome:
        """What there is to tell of the run."""
        seconds = time.monotonic() - self._begun
        return Outcome(
            point,
            self.proxy.writes,
            self.proxy.total,
            self.operator.starts,
            seconds=seconds,
            by_method=self.proxy.requests,
        )

    async def revive(self, struck: asyncio.Event, *, once: bool) -> None:
        """Start the operator again whenever it was killed."""
        while True:
            await struck.wait()
            await self.operator.gone()
            struck.clear()
            self.operator.start()
            if once:
                return

    async def supervise(self) -> None:
        """Start the operator again when it has ended by itself."""
        while True:
            await asyncio.sleep(0.5)
            if not self.operator.alive:
                await self.operator.gone()
                self.operator.start()

    async def settled(self) -> dict[str, Any]:
        """The end state, once the garbage collector has done its part and nothing has changed for a while since."""
        state, since = None, time.monotonic()
        deadline = since + CONVERGED_SECONDS
        while time.monotonic() < deadline:
            await asyncio.sleep(0.7)
            found = await end_state(self.cast.admin, self.namespace)
            if found != state or found.uncollected:
                state, since = found, time.monotonic()
            elif time.monotonic() - since > QUIET_SECONDS:
                return found.objects
        raise AssertionError(f"{self.story}: does not settle")

    async def compare(self) -> str | None:
        """Wait until the end is that of the undisturbed run; what differs when it does not come to that."""
        expected = self._suite.undisturbed[self.story][0]
        deadline = time.monotonic() + CONVERGED_SECONDS
        while True:
            found = await end_state(self.cast.admin, self.namespace)
            lines = difference(expected, found.objects)
            if not lines:
                break
            if time.monotonic() > deadline:
                return f"another end: {'; '.join(lines[:8])}; log: {self.operator.log}"
            await asyncio.sleep(0.3)
        if bad := self.cast.world.fence_violations(self.namespace):
            return f"two attempts at once: {'; '.join(bad[:4])}"
        deadline = time.monotonic() + REVIVED_SECONDS
        while not self.operator.alive:  # killed at its last write, it may not have been started again yet
            if time.monotonic() > deadline:
                return f"the operator ended by itself: {self.operator.log}"
            await asyncio.sleep(0.1)
        return None
