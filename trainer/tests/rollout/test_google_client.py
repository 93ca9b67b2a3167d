"""Web search over real HTTP, against a server that speaks serper.dev's API."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
from aiohttp import web
from rljob_api.errors import UserError
from rljob_api.v1alpha1.job import RLJob
from rljob_trainer.rollout.generate.build import JobGenerate
from rljob_trainer.rollout.google_client import GoogleClient
from rljob_trainer.rollout.search_client import SearchError
from rljob_trainer.rollout.web_page import PageReader, page_text, window

Handler = Callable[[dict[str, Any]], Awaitable[web.StreamResponse]]
PAGE = (
    "<html><head><title>t</title><script>no()</script></head><body><p>Before. The  tall tower</p><b>stands</b></body>"
)


class Serper:
    def __init__(self) -> None:
        self.url, self.requests = "", list[tuple[str | None, dict[str, Any]]]()
        self.answer: Handler = self.two

    async def two(self, body: dict[str, Any]) -> web.StreamResponse:
        organic = [
            {"title": "Tower", "link": f"{self.url}/page", "snippet": "The tall  tower ...", "position": 1},
            {"title": "", "link": "", "snippet": ""},
            {"title": "Other", "link": f"{self.url}/gone"},
            {"title": "Third", "link": "ftp://x", "snippet": "three"},
        ]
        return web.json_response({"searchParameters": {}, "organic": organic})


@asynccontextmanager
async def running() -> AsyncIterator[Serper]:
    serper = Serper()

    async def search(request: web.Request) -> web.StreamResponse:
        body = await request.json()
        serper.requests.append((request.headers.get("X-API-KEY"), body))
        return await serper.answer(body)

    async def page(request: web.Request) -> web.StreamResponse:
        return web.Response(text=PAGE, content_type="text/html")

    async def moved(request: web.Request) -> web.StreamResponse:
        raise web.HTTPFound("/page")

    app = web.Application()
    app.router.add_post("/search", search)
    app.router.add_get("/page", page)
    app.router.add_get("/moved", moved)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    serper.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    try:
        yield serper
    finally:
        await asyncio.wait_for(runner.cleanup(), 10)


def client(serper: Serper, timeout: float = 5.0, **options: Any) -> GoogleClient:
    limit = asyncio.Semaphore(8)
    return GoogleClient(f"{serper.url}/search", "s3cret", topk=3, timeout=timeout, limit=limit, **options)


async def test_snippets_become_documents() -> None:
    async with running() as serper, client(serper) as google:
        found = await google.search("how tall")
    assert serper.requests == [("s3cret", {"q": "how tall", "num": 3})]
    assert [document["contents"] for document in found] == [
        '"Tower"\nThe tall tower ...',
        '"Other"\nNo snippet',
        '"Third"\nthree',
    ]


async def test_pages_take_the_place_of_snippets_where_they_can_be_had() -> None:
    async with running() as serper, client(serper, pages=PageReader(anywhere=True)) as google:
        found = await google.search("how tall")
    assert [document["contents"] for document in found] == [
        '"Tower"\nBefore. The tall tower stands',
        '"Other"\nNo snippet',
        '"Third"\nthree',
    ]


async def test_pages_within_the_cluster_are_not_read() -> None:
    async with running() as serper:
        loop = asyncio.get_running_loop()
        async with PageReader() as pages, PageReader(anywhere=True) as anywhere:
            host = serper.url.replace("127.0.0.1", "localhost")
            for link in (f"{serper.url}/page", f"{host}/page", f"{host}/moved"):
                assert await pages.around(link, "tower", loop.time() + 5) is None
            assert await anywhere.around(f"{serper.url}/moved", "tower", loop.time() + 5)


async def test_nothing_found_is_no_failure() -> None:
    async def nothing(body: dict[str, Any]) -> web.StreamResponse:
        return web.json_response({"searchParameters": {}})

    async with running() as serper, client(serper) as google:
        serper.answer = nothing
        assert await google.search("zzz") == []


@pytest.mark.parametrize(
    ("status", "text", "reason"),
    [
        (403, '{"message": "Unauthorized."}', "HTTP 403.*Unauthorized"),
        (200, "<html>", "not JSON"),
        (200, '{"organic": 3}', "something else"),
        (200, "[]", "something else"),
    ],
)
async def test_what_goes_wrong_is_told_without_the_key(status: int, text: str, reason: str) -> None:
    async def wrong(body: dict[str, Any]) -> web.StreamResponse:
        return web.Response(status=status, text=text)

    async with running() as serper, client(serper) as google:
        serper.answer = wrong
        with pytest.raises(SearchError, match=reason) as caught:
            await google.search("who")
        assert "s3cret" not in str(caught.value)
        assert google.failures == 1


async def test_a_stalled_search_is_given_up() -> None:
    async def stall(body: dict[str, Any]) -> web.StreamResponse:
        await asyncio.sleep(30)
        return web.Response()

    async with running() as serper, client(serper, timeout=0.3) as google:
        serper.answer = stall
        with pytest.raises(SearchError, match=r"no answer within 0\.3 s"):
            await google.search("who")


def test_text_of_pages() -> None:
    assert page_text("<p>a<script>x</script>b</p><style>y</style>&amp; c") == "a b & c"
    assert page_text("<script>never closed") == ""
    assert page_text("<" * 10_000).count("<") <= 10_000
    text = "x " * 5000 + "the needle is here" + " y" * 5000
    assert "the needle" in window(text, "... the needle is here ...", 200)
    assert window("short", "not in it", 200) == "short"


def job(backend: dict[str, Any]) -> RLJob:
    return RLJob.model_validate(
        {
            "apiVersion": "rljob.io/v1alpha1",
            "kind": "RLJob",
            "metadata": {"name": "x"},
            "spec": {"model": {"path": "x"}, "rollout": {"generate": {"type": "search", "search": backend}}},
        }
    )


async def test_a_job_searches_google(monkeypatch: pytest.MonkeyPatch) -> None:
    async with running() as serper:
        google = {"apiKey": {"name": "serper", "key": "key"}, "url": f"{serper.url}/search"}
        spec = job({"backend": "google", "google": google, "maxTurns": 2}).spec
        with pytest.raises(UserError, match=r"google\.apiKey.*SERPER_API_KEY is not set"):
            JobGenerate(spec, None)
        monkeypatch.setenv("SERPER_API_KEY", "abc\n")
        generate = JobGenerate(spec, None)
        try:
            await generate.connect("http://the.jobs.own.retriever.is.not.asked")
            assert (await generate._ask("tall"))[0]["contents"].startswith('"Tower"')
            assert serper.requests == [("abc", {"q": "tall", "num": 3})]
            assert generate.metrics()["search_requests"] == 1
        finally:
            await generate.close()
