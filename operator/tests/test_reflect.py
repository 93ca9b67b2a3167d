"""A reflector never hammers the apiserver, however a watch ends: some simulated time, and what it asked for in it."""

import asyncio
import itertools
from collections import Counter
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
from rljob_operator.kube.cache import Cache
from rljob_operator.kube.client import ApiError
from rljob_operator.kube.objects import Kind, Obj
from rljob_operator.kube.reflector import LIVED_SECONDS, Reflectors
from rljob_operator.main import kopf_settings
from rljob_operator.settings import Settings

PERIOD = 1200.0
RESYNC = 300.0
Change = tuple[str, Obj]


class SimulatedLoop(asyncio.SelectorEventLoop):
    """Time passes only when nothing is left to be done, and then at once."""

    _now = 0.0

    def time(self) -> float:
        return self._now

    def _run_once(self) -> None:
        if not self._ready and self._scheduled:  # type: ignore[attr-defined]
            self._now = max(self._now, self._scheduled[0].when())  # type: ignore[attr-defined]
        super()._run_once()  # type: ignore[misc]


def now() -> float:
    return asyncio.get_running_loop().time()


class Apiserver:
    """Answers every listing; each watch does what the test says."""

    def __init__(self, watch: Callable[["Apiserver", float], AsyncIterator[Change]]) -> None:
        self._watch = watch
        self.lists: dict[str, list[float]] = {}
        self.watches: Counter[str] = Counter()
        self.version = 10

    async def pages(self, kind: Kind, namespace: str | None, selector: str) -> AsyncIterator[tuple[list[Obj], int]]:
        self.lists.setdefault(kind.kind, []).append(now())
        await self._enough(len(self.lists[kind.kind]))
        yield [], self.version

    async def watch(
        self, kind: Kind, namespace: str | None, selector: str, version: str, seconds: float
    ) -> AsyncIterator[Change]:
        self.watches[kind.kind] += 1
        await self._enough(self.watches[kind.kind])
        async for change in self._watch(self, seconds):
            yield change

    async def _enough(self, asked: int) -> None:
        """Who asks without a pause would ask for ever: no time passes here otherwise."""
        if asked > 5 * PERIOD:
            await asyncio.sleep(PERIOD)

    def bookmark(self, version: int) -> Change:
        return "BOOKMARK", {"kind": "x", "metadata": {"resourceVersion": str(version)}}


async def gone(_: Apiserver, seconds: float) -> AsyncIterator[Change]:
    raise ApiError("WATCH", 410, "too old")
    yield


async def refused(_: Apiserver, seconds: float) -> AsyncIterator[Change]:
    raise ApiError("WATCH", 403, "forbidden")
    yield


async def broken(_: Apiserver, seconds: float) -> AsyncIterator[Change]:
    await asyncio.sleep(0.001)
    raise ApiError("WATCH", None, "ClientPayloadError")
    yield


async def nonsense(_: Apiserver, seconds: float) -> AsyncIterator[Change]:
    yield "ADDED", {"kind": "x"}


async def silent(_: Apiserver, seconds: float) -> AsyncIterator[Change]:
    """Ends immediately, without an event or an error."""
    return
    yield


async def same_word(server: Apiserver, seconds: float) -> AsyncIterator[Change]:
    """Says what it has said before, and ends."""
    yield server.bookmark(10)


async def word_and_gone(server: Apiserver, seconds: float) -> AsyncIterator[Change]:
    """Tells something new each time, and fails at once."""
    server.version += 1
    yield server.bookmark(server.version)
    raise ApiError("WATCH", 410, "too old")


async def short(server: Apiserver, seconds: float) -> AsyncIterator[Change]:
    """Tells something new each time, and ends at once."""
    server.version += 1
    yield server.bookmark(server.version)


async def alive(server: Apiserver, seconds: float) -> AsyncIterator[Change]:
    await asyncio.sleep(seconds)
    server.version += 1
    yield server.bookmark(server.version)


def reflected(server: Apiserver) -> None:
    """Reflect for the period."""

    async def main() -> None:
        kube: Any = server
        async with Reflectors(kube, Cache(), lambda *_: None, (), RESYNC).running():
            await asyncio.sleep(PERIOD)

    with asyncio.Runner(loop_factory=SimulatedLoop) as runner:
        runner.run(main())


@pytest.mark.parametrize("watch", [gone, refused, broken, nonsense, silent, same_word, word_and_gone])
def test_a_watch_that_never_works_is_tried_less_and_less(watch: Any) -> None:
    server = Apiserver(watch)
    reflected(server)
    assert server.lists
    for kind, times in server.lists.items():
        assert len(times) < PERIOD / 14, f"{kind} is listed without a pause"
        assert server.watches[kind] < PERIOD / 14, f"{kind} is watched without a pause"
        assert server.watches[kind] > PERIOD / 26, f"{kind} is given up"


def test_a_watch_that_tells_and_ends_at_once_is_opened_with_a_pause_and_goes_on() -> None:
    server = Apiserver(short)
    reflected(server)
    for kind, times in server.lists.items():
        assert len(times) < PERIOD / RESYNC / 0.8 + 2
        assert PERIOD < server.watches[kind] < 2.6 * PERIOD


def test_a_watch_that_works_is_listed_with_every_resync_alone() -> None:
    server = Apiserver(alive)
    reflected(server)
    for times in server.lists.values():
        assert PERIOD / RESYNC / 1.2 - 1 < len(times) < PERIOD / RESYNC / 0.8 + 2


def test_after_a_watch_that_has_lived_a_version_that_is_too_old_is_a_first_failure_again() -> None:
    lives = LIVED_SECONDS + 1.0

    async def watch(server: Apiserver, seconds: float) -> AsyncIterator[Change]:
        if now() > PERIOD / 2:
            await asyncio.sleep(lives)
        raise ApiError("WATCH", 410, "too old")
        yield

    server = Apiserver(watch)
    reflected(server)
    for times in server.lists.values():
        later = [time for time in times if time > PERIOD / 2 + 60]
        assert max(second - first for first, second in itertools.pairwise(later)) < lives + 0.7


def test_kopf_waits_too_before_it_lists_anew() -> None:
    assert kopf_settings(Settings()).watching.reconnect_backoff >= 1.0
