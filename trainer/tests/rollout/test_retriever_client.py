"""Searches over real HTTP: answers, retries, and clear failures within the time limit."""

import asyncio
import importlib.util
import time
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from rljob_trainer.rollout.retriever_client import RetrieverClient, retrieve_address
from rljob_trainer.rollout.search_client import SearchError

_spec = importlib.util.spec_from_file_location("retriever_server", Path(__file__).with_name("retriever_server.py"))
assert _spec is not None
assert _spec.loader is not None
retriever_server = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(retriever_server)
running = retriever_server.running


def client(url: str, timeout: float = 5.0, limit: int = 64, **options: Any) -> RetrieverClient:
    return RetrieverClient(url, topk=3, timeout=timeout, limit=asyncio.Semaphore(limit), **options)


async def test_search_r1s_protocol() -> None:
    async with running() as retriever, client(retriever.url) as search:
        assert await search.search("who") == [{"id": "0", "contents": '"who"\nabout who'}]
        assert retriever.bodies == [{"queries": ["who"], "topk": 3, "return_scores": True}]


async def test_answers_without_scores_are_understood() -> None:
    async def bare(body: dict[str, Any]) -> web.Response:
        return web.json_response({"result": [[{"id": 7, "contents": "x"}]]})

    async with running(bare) as retriever, client(retriever.url) as search:
        assert await search.search("who") == [{"id": "7", "contents": "x"}]


async def test_queries_of_one_moment_share_requests() -> None:
    async with running() as retriever, client(retriever.url, max_batch=10) as search:
        found = await asyncio.gather(*(search.search(f"q{i}") for i in range(25)))
        assert [documents[0]["contents"] for documents in found] == [f'"q{i}"\nabout q{i}' for i in range(25)]
        assert sorted(len(body["queries"]) for body in retriever.bodies) == [5, 10, 10]


async def test_the_limit_holds_over_clients() -> None:
    async def slow(body: dict[str, Any]) -> web.StreamResponse:
        await asyncio.sleep(0.02)
        return await retriever_server.FakeRetriever.echo(body)

    async with running(slow) as retriever:
        limit = asyncio.Semaphore(4)
        clients = [RetrieverClient(retriever.url, topk=1, timeout=10, limit=limit) for _ in range(2)]
        async with clients[0], clients[1]:
            await asyncio.gather(*(clients[i % 2].search(str(i)) for i in range(30)))
        assert len(retriever.queries) == 30
        assert retriever.most_under_way <= 4


async def test_a_busy_service_is_asked_again() -> None:
    answers = iter([503, 502, 429])

    async def busy(body: dict[str, Any]) -> web.StreamResponse:
        status = next(answers, None)
        if status is None:
            return await retriever_server.FakeRetriever.echo(body)
        return web.Response(status=status, headers={"Retry-After": "0"})

    async with running(busy) as retriever, client(retriever.url) as search:
        assert (await search.search("who"))[0]["id"] == "0"
        assert (search.requests, search.retries, search.failures) == (4, 3, 0)


async def test_a_service_that_stays_away_is_given_up() -> None:
    async with running() as retriever:
        url = retriever.url
    async with client(url, timeout=0.5) as search:
        start = time.monotonic()
        with pytest.raises(SearchError, match=r"gave no answer within 0\.5 s .*ClientConnectorError"):
            await search.search("who")
        assert time.monotonic() - start < 30
        assert search.retries >= 1
        assert search.failures == 1


async def test_a_service_that_hangs_is_given_up() -> None:
    async def hang(body: dict[str, Any]) -> web.StreamResponse:
        await asyncio.sleep(30)
        return web.Response()

    async with running(hang) as retriever, client(retriever.url, timeout=0.3) as search:
        with pytest.raises(SearchError, match="no answer within"):
            await search.search("who")


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (web.Response, "not JSON"),
        (lambda: web.Response(text="<html>"), "not JSON"),
        (lambda: web.json_response([]), "something else"),
        (lambda: web.json_response({"result": []}), "something else"),
        (lambda: web.json_response({"result": [None]}), "something else"),
        (lambda: web.json_response({"result": [[{"title": "x"}]]}), "without text"),
        (lambda: web.json_response({"result": [["x"]]}), "without text"),
        (lambda: web.json_response({"detail": "topk: too large"}, status=422), "HTTP 422.*topk: too large"),
        (lambda: web.Response(status=500, text="boom"), "HTTP 500: boom"),
    ],
)
async def test_odd_answers_fail_at_once(answer: Any, reason: str) -> None:
    async def odd(body: dict[str, Any]) -> web.StreamResponse:
        result: web.StreamResponse = answer()
        return result

    async with running(odd) as retriever, client(retriever.url) as search:
        with pytest.raises(SearchError, match=reason):
            await search.search("who")
        assert len(retriever.bodies) == 1


async def test_an_odd_query_costs_only_itself() -> None:
    async def picky(body: dict[str, Any]) -> web.StreamResponse:
        if "bad" in body["queries"]:
            return web.json_response({"detail": "no"}, status=422)
        return await retriever_server.FakeRetriever.echo(body)

    async with running(picky) as retriever, client(retriever.url) as search:
        queries = ["a", "bad", "b"]
        found = await asyncio.gather(*(search.search(query) for query in queries), return_exceptions=True)
        assert [isinstance(result, SearchError) for result in found] == [False, True, False]


async def test_a_proxy_is_used() -> None:
    seen: list[str] = []

    async def relay(request: web.Request) -> web.Response:
        seen.append(str(request.url))
        return web.json_response({"result": [[]]})

    app = web.Application()
    app.router.add_route("*", "/{path:.*}", relay)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    try:
        proxy = f"http://127.0.0.1:{runner.addresses[0][1]}"
        async with client("http://retriever.invalid:8000", proxy=proxy) as search:
            assert await search.search("who") == []
        assert seen == ["http://retriever.invalid:8000/retrieve"]
    finally:
        await runner.cleanup()


@pytest.mark.parametrize(
    ("url", "address"),
    [
        ("http://a:8000", "http://a:8000/retrieve"),
        ("http://a:8000/", "http://a:8000/retrieve"),
        ("https://a/search/v1", "https://a/search/v1"),
    ],
)
def test_a_bare_address_means_retrieve(url: str, address: str) -> None:
    assert retrieve_address(url) == address
