"""Asking a JSON service over HTTP: retries within a deadline, answers of bounded size, errors as one sentence."""

import asyncio
import json
import time
from collections.abc import Mapping
from types import TracebackType
from typing import Any, Self

import aiohttp

RETRYABLE = frozenset({429, 502, 503, 504})
FIRST_PAUSE, LONGEST_PAUSE = 0.1, 2.0
MAX_ANSWER_BYTES = 16 << 20
MAX_COMPLAINT_BYTES = 1 << 16


class CallError(RuntimeError):
    """A service answered something else than it should. `status` is that of HTTP, `answer` what it wrote, if any."""

    def __init__(self, message: str, *, status: int = 0, answer: str = "") -> None:
        super().__init__(message)
        self.status, self.answer = status, answer


class AwayError(CallError):
    """A service did not answer, within its time (`timed_out`) or the attempts: asking again at once would only take
    longer."""

    def __init__(self, message: str, *, timed_out: bool) -> None:
        super().__init__(message)
        self.timed_out = timed_out


class HttpCaller:
    """POSTs JSON to one address; what JSON does not know travels as text.

    `timeout` is that of a call in seconds, retries included; `attempts` bounds them too. Busy (429, 502, 503, 504) and
    unreachable services are asked again, with growing pauses. Headers may hold secrets: they appear in no message.
    Use it as an async context manager, within one event loop.
    """

    def __init__(
        self,
        url: str,
        *,
        timeout: float,
        proxy: str | None = None,
        headers: Mapping[str, str] | None = None,
        attempts: int | None = None,
    ) -> None:
        self.url, self.timeout = url, timeout
        self._proxy, self._attempts = proxy, attempts
        self._headers = {"Content-Type": "application/json"} | dict(headers or {})
        self._session: aiohttp.ClientSession | None = None
        self.requests = self.retries = 0

    async def __aenter__(self) -> Self:
        # The limit on connections is the caller's; the time limits are those of each call.
        connector = aiohttp.TCPConnector(limit=0)
        self._session = aiohttp.ClientSession(connector=connector, timeout=aiohttp.ClientTimeout(total=None))
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._session is not None:
            await self._session.close()

    async def post(self, body: Any, *, deadline: float | None = None, text: bool = False) -> Any:
        """The answer to `body`: parsed JSON, or (with `text`) the text when it is not JSON.

        `deadline` (of `time.monotonic`) is by default `timeout` from now. Raises AwayError and CallError.
        """
        deadline = time.monotonic() + self.timeout if deadline is None else deadline
        data = json.dumps(body, default=str).encode()
        pause, reason, attempts = FIRST_PAUSE, "no answer", 0
        while (left := deadline - time.monotonic()) > 0:
            wait = pause
            try:
                assert self._session is not None
                self.requests += 1
                attempts += 1
                limit = aiohttp.ClientTimeout(total=left)
                async with self._session.post(
                    self.url, data=data, proxy=self._proxy, headers=self._headers, timeout=limit
                ) as response:
                    if response.status == 200:
                        return _parsed(await _read(response, self.url), self.url, text)
                    answer = (await response.content.read(MAX_COMPLAINT_BYTES)).decode(errors="replace")
                    reason = f"HTTP {response.status}: {answer[:200]}"
                    if response.status not in RETRYABLE:
                        raise CallError(f"{self.url} answered {reason}", status=response.status, answer=answer)
                    wait = max(pause, _seconds(response.headers.get("Retry-After")))
            except (aiohttp.ClientConnectionError, aiohttp.ClientPayloadError) as error:
                reason = f"{type(error).__name__}: {error}"
            except TimeoutError:
                break
            except aiohttp.ClientError as error:
                raise CallError(f"{self.url}: {type(error).__name__}: {error}") from None
            if self._attempts is not None and attempts >= self._attempts:
                raise AwayError(f"{self.url} did not answer {attempts} requests ({reason})", timed_out=False)
            self.retries += 1
            await asyncio.sleep(min(wait, max(0.0, deadline - time.monotonic())))
            pause = min(pause * 2, LONGEST_PAUSE)
        raise AwayError(f"{self.url} gave no answer within {self.timeout:g} s ({reason})", timed_out=True)


async def _read(response: aiohttp.ClientResponse, url: str) -> bytes:
    data = bytearray()
    async for part in response.content.iter_chunked(1 << 16):
        data += part
        if len(data) > MAX_ANSWER_BYTES:
            raise CallError(f"{url} answered more than {MAX_ANSWER_BYTES >> 20} MiB")
    return bytes(data)


def _parsed(data: bytes, url: str, text: bool) -> Any:
    import orjson

    try:
        return orjson.loads(data)
    except orjson.JSONDecodeError as error:
        if text:
            return data.decode(errors="replace")
        raise CallError(f"{url} answered something that is not JSON: {error}") from None


def _seconds(retry_after: str | None) -> float:
    try:
        return min(max(float(retry_after or 0.0), 0.0), LONGEST_PAUSE)
    except ValueError:  # an HTTP date; the usual pause will do
        return 0.0
