"""Asking for documents over HTTP: what the clients of all search services share."""

import asyncio
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping
from types import TracebackType
from typing import Self

from rljob_trainer.http_caller import LONGEST_PAUSE, CallError, HttpCaller

Document = Mapping[str, str]
"""`{"id", "contents"}`: the first line of the contents is the title, in double quotes."""


class SearchError(CallError):
    """A search was not answered: the service is away, too slow, or answers something else."""


class SearchClient(ABC):
    """A client of one search service.

    `limit` bounds the queries under way and may be shared by clients. `timeout` is that of one search in seconds,
    retries included, from when its turn has come. Use it as an async context manager, within one event loop.
    """

    def __init__(
        self,
        url: str,
        *,
        topk: int,
        timeout: float,
        limit: asyncio.Semaphore,
        proxy: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        """`topk`: documents per query. `headers` may hold secrets: they appear in no message."""
        self.url, self.topk = url, topk
        self._timeout, self._limit = timeout, limit
        self._caller = HttpCaller(url, timeout=timeout, proxy=proxy, headers=headers)
        self.failures = 0
        """Searches without an answer."""

    @property
    def requests(self) -> int:
        """Requests sent to the service."""
        return self._caller.requests

    @property
    def retries(self) -> int:
        """Requests that were sent again."""
        return self._caller.retries

    async def __aenter__(self) -> Self:
        await self._caller.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self._caller.__aexit__(kind, error, traceback)

    async def search(self, query: str) -> list[Document]:
        """The documents for `query`, best first. Raises SearchError."""
        async with self._limit:
            try:
                # `_find` keeps to the deadline; this second limit holds even if it should not.
                async with asyncio.timeout(self._timeout + LONGEST_PAUSE):
                    return await self._find(query, time.monotonic() + self._timeout)
            except TimeoutError:
                self.failures += 1
                raise SearchError(f"{self.url} gave no answer within {self._timeout:g} s") from None
            except CallError as error:
                self.failures += 1
                raise SearchError(str(error)) from None

    @abstractmethod
    async def _find(self, query: str, deadline: float) -> list[Document]:
        """As `search`, until `deadline` (of `time.monotonic`). Raises CallError."""
