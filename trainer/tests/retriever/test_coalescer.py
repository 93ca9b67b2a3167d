"""Batching: answers go to those who asked, whatever shares a batch."""

import asyncio
import threading
from collections.abc import Callable, Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rljob_trainer.retriever.batching import Closed, Coalescer, QueueFull
from rljob_trainer.retriever.search import Hit


def echo(queries: Sequence[str], topk: int) -> list[list[Hit]]:
    return [[Hit({"id": f"{query}/{rank}", "contents": query}, -rank) for rank in range(topk)] for query in queries]


def coalescer(search: object = echo, **options: object) -> Coalescer:
    settings_ = {"max_batch": 8, "window": 0.0, "max_queued": 10_000} | options
    made = Coalescer(search, **settings_)  # type: ignore[arg-type]
    made.start()
    return made


async def until(condition: Callable[[], bool]) -> None:
    """Wait for what happens in the search's thread."""
    async with asyncio.timeout(20):
        while not condition():  # noqa: ASYNC110 - set from a thread
            await asyncio.sleep(0.001)


@settings(max_examples=40, deadline=None)
@given(
    requests=st.lists(st.tuples(st.integers(1, 20), st.integers(1, 4)), min_size=1, max_size=25),
    window=st.sampled_from([0.0, 0.001]),
)
def test_every_request_gets_its_own_answers(requests: list[tuple[int, int]], window: float) -> None:
    sizes: list[int] = []

    async def run() -> None:
        service = coalescer(window=window, on_batch=sizes.append)

        async def ask(number: int, count: int, topk: int) -> None:
            queries = [f"{number}-{i}" for i in range(count)]
            hits = await service.submit(queries, topk)
            assert [[hit.document["id"] for hit in found] for found in hits] == [
                [f"{query}/{rank}" for rank in range(topk)] for query in queries
            ]

        await asyncio.gather(*(ask(number, count, topk) for number, (count, topk) in enumerate(requests)))
        await service.close(5.0)

    asyncio.run(run())
    assert sum(sizes) == sum(count for count, _ in requests)
    assert max(sizes) <= 8


async def test_requests_that_wait_share_a_batch() -> None:
    release = threading.Event()
    sizes: list[int] = []

    def slow(queries: Sequence[str], topk: int) -> list[list[Hit]]:
        sizes.append(len(queries))
        assert release.wait(20)
        return echo(queries, topk)

    service = coalescer(slow)
    first = asyncio.create_task(service.submit(["a"], 1))
    await until(lambda: bool(sizes))
    others = [asyncio.create_task(service.submit([str(i)], 1)) for i in range(5)]
    await asyncio.sleep(0)
    release.set()
    await asyncio.gather(first, *others)
    assert sizes == [1, 5]
    await service.close(5.0)


async def test_a_full_queue_refuses_at_once_and_recovers() -> None:
    release = threading.Event()
    begun = threading.Event()

    def slow(queries: Sequence[str], topk: int) -> list[list[Hit]]:
        begun.set()
        assert release.wait(20)
        return echo(queries, topk)

    service = coalescer(slow, max_queued=3)
    running = asyncio.create_task(service.submit(["a"], 1))
    await until(begun.is_set)
    waiting = asyncio.create_task(service.submit(["b", "c", "d"], 1))
    await asyncio.sleep(0)
    with pytest.raises(QueueFull):
        await service.submit(["e"], 1)
    release.set()
    await asyncio.gather(running, waiting)
    assert len(await service.submit(["e"], 1)) == 1
    await service.close(5.0)


async def test_an_error_goes_to_those_of_its_batch_alone() -> None:
    def picky(queries: Sequence[str], topk: int) -> list[list[Hit]]:
        if "bad" in queries:
            raise ValueError("no")
        return echo(queries, topk)

    service = coalescer(picky, max_batch=1)
    results = await asyncio.gather(
        *(service.submit([query], 1) for query in ("good", "bad", "fine")), return_exceptions=True
    )
    assert isinstance(results[1], ValueError)
    assert not isinstance(results[0], BaseException)
    assert not isinstance(results[2], BaseException)
    await service.close(5.0)


async def test_who_stops_waiting_costs_no_search() -> None:
    release = threading.Event()
    seen: list[str] = []

    def slow(queries: Sequence[str], topk: int) -> list[list[Hit]]:
        seen.extend(queries)
        assert release.wait(20)
        return echo(queries, topk)

    service = coalescer(slow)
    first = asyncio.create_task(service.submit(["a"], 1))
    await until(lambda: bool(seen))
    gone = asyncio.create_task(service.submit(["gone"], 1))
    stays = asyncio.create_task(service.submit(["stays"], 1))
    await asyncio.sleep(0)
    gone.cancel()
    release.set()
    await asyncio.gather(first, stays)
    assert seen == ["a", "stays"]
    await service.close(5.0)


async def test_close_answers_what_waits_and_refuses_the_rest() -> None:
    service = coalescer(window=0.01)
    waiting = [asyncio.create_task(service.submit([str(i)], 1)) for i in range(20)]
    await asyncio.sleep(0)
    await service.close(5.0)
    assert len(await asyncio.gather(*waiting)) == 20
    with pytest.raises(Closed):
        await service.submit(["late"], 1)
