"""Web search through serper.dev: `POST {q, num}` with the key in `X-API-KEY`."""

import asyncio
import time
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any, Self

from rljob_trainer.rollout.search_client import Document, SearchClient, SearchError
from rljob_trainer.rollout.web_page import PageReader


class GoogleClient(SearchClient):
    """Asks Google, one query per request.

    A result is a document {"id": link, "contents": '"title"\\nsnippet'}. With `pages`, the snippet gives way to the
    part of the page around it; a page that does not load in time keeps its snippet.
    """

    def __init__(
        self,
        url: str,
        api_key: str,
        *,
        topk: int,
        timeout: float,
        limit: asyncio.Semaphore,
        proxy: str | None = None,
        pages: PageReader | None = None,
    ) -> None:
        super().__init__(url, topk=topk, timeout=timeout, limit=limit, proxy=proxy, headers={"X-API-KEY": api_key})
        self._pages = pages

    async def __aenter__(self) -> Self:
        await super().__aenter__()
        if self._pages is not None:
            await self._pages.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._pages is not None:
            await self._pages.__aexit__(kind, error, traceback)
        await super().__aexit__(kind, error, traceback)

    async def _find(self, query: str, deadline: float) -> list[Document]:
        answer = await self._caller.post({"q": query, "num": self.topk}, deadline=deadline)
        return await self._with_pages(organic(answer, self.url)[: self.topk], deadline)

    async def _with_pages(self, results: Sequence[Mapping[str, str]], deadline: float) -> list[Document]:
        texts = [result["snippet"] for result in results]
        if self._pages is not None:
            # Half of what is left: an answer with snippets is better than none.
            until = time.monotonic() + max(0.0, deadline - time.monotonic()) / 2
            read = (self._pages.around(result["link"], result["snippet"], until) for result in results)
            texts = [page or text for page, text in zip(await asyncio.gather(*read), texts, strict=True)]
        return [
            {"id": result["link"], "contents": f'"{result["title"]}"\n{text}'}
            for result, text in zip(results, texts, strict=True)
        ]


def organic(answer: Any, url: str) -> list[dict[str, str]]:
    """The results of an answer, {"organic": [{"title", "link", "snippet"} …]}: those with a title or a snippet.

    Raises SearchError for another answer. No `organic` at all means that nothing was found.
    """
    results = answer.get("organic", []) if isinstance(answer, dict) else None
    if not isinstance(results, list) or not all(isinstance(result, dict) for result in results):
        raise SearchError(f'{url} answered something else than {{"organic": [… results]}}')
    found = [{key: _line(result.get(key)) for key in ("title", "link", "snippet")} for result in results]
    return [
        {**result, "title": result["title"] or "No title", "snippet": result["snippet"] or "No snippet"}
        for result in found
        if result["title"] or result["snippet"]
    ]


def _line(value: Any) -> str:
    return " ".join(value.split()) if isinstance(value, str) else ""
