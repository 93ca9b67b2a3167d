"""An apiserver on a bad day, as the proxy plays it."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable

from e2e.faults.proxy import Answer, Call, CutError, Fault, Proxy


class Answers(Fault):
    """A share of the calls is answered with an error."""

    def __init__(
        self, answer: Answer, share: float, only: Callable[[Call], bool] = lambda call: True, seed: int = 0
    ) -> None:
        self._answer, self._share, self._only = answer, share, only
        self._random = random.Random(seed)
        self.given = 0

    async def before(self, call: Call) -> Answer | None:
        if not self._only(call) or self._random.random() >= self._share:
            return None
        self.given += 1
        return self._answer


class Refuses(Fault):
    """The first writes to a kind are refused, as by a quota or a policy that is mended later."""

    def __init__(self, plural: str, answer: Answer, times: int) -> None:
        self._plural, self._answer, self._times = plural, answer, times
        self.given = 0

    async def before(self, call: Call) -> Answer | None:
        if not call.write or self._plural not in call.path.split("/") or self.given >= self._times:
            return None
        self.given += 1
        return self._answer


class Closed(Fault):
    """Connections break: some before the apiserver has seen the call, some after it has done what was asked."""

    def __init__(self, share: float, seed: int = 0) -> None:
        self._share, self._random = share, random.Random(seed)
        self.given = 0

    def _strike(self) -> None:
        if self._random.random() < self._share:
            self.given += 1
            raise CutError

    async def before(self, call: Call) -> Answer | None:
        self._strike()
        return None

    async def after(self, call: Call, status: int) -> None:
        self._strike()


class Slow(Fault):
    """Some calls get no answer for longer than the operator waits."""

    def __init__(self, share: float, seconds: float, seed: int = 0) -> None:
        self._share, self._seconds, self._random = share, seconds, random.Random(seed)
        self.given = 0

    async def before(self, call: Call) -> Answer | None:
        if not call.watch and self._random.random() < self._share:
            self.given += 1
            await asyncio.sleep(self._seconds)
            raise CutError
        return None


class WatchesDrop(Fault):
    """No watch lasts."""

    def __init__(self, seconds: float) -> None:
        self._seconds, self.given = seconds, 0

    def watch_seconds(self, call: Call) -> float | None:
        self.given += 1
        return self._seconds


class WatchesMute(Fault):
    """Watches stay open and say nothing."""

    def __init__(self) -> None:
        self.given = 0

    def mute(self, call: Call) -> bool:
        self.given += 1
        return True


class Away(Fault):
    """At some writes the apiserver goes away: connections break and none is taken for a while."""

    def __init__(self, at_writes: tuple[int, ...], seconds: float) -> None:
        self._at, self._seconds = set(at_writes), seconds
        self.proxy: Proxy | None = None
        self.given = 0
        self._tasks: list[asyncio.Task[None]] = []

    async def before(self, call: Call) -> Answer | None:
        if call.write in self._at and self.proxy:
            self._at.discard(call.write)
            self.given += 1
            self._tasks.append(asyncio.create_task(self._leave(self.proxy)))
            raise CutError
        return None

    async def _leave(self, proxy: Proxy) -> None:
        await proxy.vanish()
        await asyncio.sleep(self._seconds)
        await proxy.listen()
