"""Asking a Search-R1 style retriever: `POST /retrieve {queries, topk, return_scores}`."""

import asyncio
from collections.abc import Coroutine
from dataclasses import dataclass
from types import TracebackType
from typing import Any

from rljob_trainer.http_caller import AwayError, CallError
from rljob_trainer.rollout.search_client import Document, SearchClient, SearchError


@dataclass(slots=True)
class _Query:
    text: str
    deadline: float
    found: "asyncio.Future[list[Document]]"


class RetrieverClient(SearchClient):
    """Asks one retriever. Queries asked at the same moment share a request, `max_batch` at most."""

    def __init__(
        self,
        url: str,
        *,
        topk: int,
        timeout: float,
        limit: asyncio.Semaphore,
        proxy: str | None = None,
        max_batch: int = 32,
    ) -> None:
        super().__init__(retrieve_address(url), topk=topk, timeout=timeout, limit=limit, proxy=proxy)
        self._max_batch = max_batch
        self._waiting: list[_Query] = []
        self._sending: set[asyncio.Task[None]] = set()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for task in self._sending:
            task.cancel()
        await asyncio.gather(*self._sending, return_exceptions=True)
        await super().__aexit__(kind, error, traceback)

    async def _find(self, query: str, deadline: float) -> list[Document]:
        found: asyncio.Future[list[Document]] = asyncio.get_running_loop().create_future()
        self._waiting.append(_Query(query, deadline, found))
        if len(self._waiting) == 1:
            self._spawn(self._flush())
        return await found

    def _spawn(self, coroutine: Coroutine[Any, Any, None]) -> None:
        task: asyncio.Task[None] = asyncio.get_running_loop().create_task(coroutine)
        self._sending.add(task)
        task.add_done_callback(self._sending.discard)

    async def _flush(self) -> None:
        # The engine ends many turns with one step: what they ask has gathered after one round of the event loop.
        await asyncio.sleep(0)
        waiting, self._waiting = self._waiting, []
        for start in range(0, len(waiting), self._max_batch):
            self._spawn(self._send(waiting[start : start + self._max_batch]))

    async def _send(self, queries: list[_Query]) -> None:
        try:
            results = await self._ask([query.text for query in queries], min(query.deadline for query in queries))
        except CallError as error:
            if len(queries) > 1 and not isinstance(error, AwayError):
                # One odd query must not cost the others their answer.
                for query in queries:
                    self._spawn(self._send([query]))
                return
            for query in queries:
                if not query.found.done():
                    query.found.set_exception(SearchError(str(error)))
            return
        for query, documents in zip(queries, results, strict=True):
            if not query.found.done():
                query.found.set_result(documents)

    async def _ask(self, texts: list[str], deadline: float) -> list[list[Document]]:
        body = {"queries": texts, "topk": self.topk, "return_scores": True}
        return _documents(await self._caller.post(body, deadline=deadline), len(texts), self.url)


def retrieve_address(url: str) -> str:
    """The address of /retrieve: `url` itself when it has a path, else beneath it."""
    scheme, separator, rest = url.partition("://")
    host, _, path = rest.partition("/")
    return url if path.strip("/") else f"{scheme}{separator}{host}/retrieve"


def _documents(answer: Any, count: int, url: str) -> list[list[Document]]:
    """Search-R1's answer: {"result": [[{"document": {"id", "contents"}, "score"} or the document itself]]}."""
    result = answer.get("result") if isinstance(answer, dict) else None
    if not isinstance(result, list) or len(result) != count or not all(isinstance(found, list) for found in result):
        raise SearchError(f'{url} answered something else than {{"result": [… {count} lists of documents]}}')
    return [[_document(entry, url) for entry in found] for found in result]


def _document(entry: Any, url: str) -> Document:
    document = entry.get("document", entry) if isinstance(entry, dict) else None
    if not isinstance(document, dict) or not isinstance(document.get("contents"), str):
        raise SearchError(f"{url} answered a document without text in `contents`")
    return {"id": str(document.get("id", "")), "contents": document["contents"]}
