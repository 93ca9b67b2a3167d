"""The text of web pages that a search has found, within limits of time and size."""

import asyncio
import ipaddress
import socket
import time
from html.parser import HTMLParser
from types import TracebackType
from typing import Any, Self

import aiohttp
from aiohttp.abc import AbstractResolver, ResolveResult
from yarl import URL

MAX_PAGE_BYTES = 2 << 20
MAX_REDIRECTS = 4
WINDOW = 2000
"""Characters of a page that are shown."""
PAGES_AT_ONCE = 32
_UNSEEN = frozenset({"script", "style", "noscript", "template", "svg", "head"})


class PageReader:
    """Fetches pages. Without a proxy, only from public addresses: a result must not lead into the cluster.

    `anywhere` lifts that (tests). Use it as an async context manager, within one event loop.
    """

    def __init__(self, proxy: str | None = None, *, anywhere: bool = False) -> None:
        self._proxy, self._anywhere = proxy, anywhere or proxy is not None
        self._session: aiohttp.ClientSession | None = None
        self._limit = asyncio.Semaphore(PAGES_AT_ONCE)

    async def __aenter__(self) -> Self:
        resolver = None if self._anywhere else PublicResolver()
        connector = aiohttp.TCPConnector(limit=0, resolver=resolver)
        self._session = aiohttp.ClientSession(connector=connector)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._session is not None:
            await self._session.close()

    async def around(self, link: str, snippet: str, deadline: float) -> str | None:
        """The part of a page around its snippet, on one line; None when it cannot be had until `deadline`."""
        if not link.startswith(("http://", "https://")):
            return None
        try:
            async with asyncio.timeout(max(0.0, deadline - time.monotonic())), self._limit:
                html = await self._fetch(link)
        except (
            TimeoutError,
            aiohttp.ClientError,
            ValueError,
            LookupError,
            OSError,
        ):  # a page is a courtesy of its server
            return None
        text = page_text(html)
        return window(text, snippet) if text else None

    async def _fetch(self, link: str) -> str:
        """The page's source. Redirects are followed by hand, so that each address is looked at."""
        assert self._session is not None
        url = URL(link)
        for _ in range(MAX_REDIRECTS + 1):
            if not self._anywhere and _is_inner_address(url):
                raise ValueError(f"{url} is not public")
            async with self._session.get(url, proxy=self._proxy, allow_redirects=False) as response:
                if response.status in (301, 302, 303, 307, 308):
                    url = url.join(URL(response.headers.get("Location", "")))
                    continue
                if response.status != 200 or "html" not in response.headers.get("Content-Type", "html"):
                    raise ValueError(f"HTTP {response.status}")
                data = bytearray()
                async for part in response.content.iter_chunked(1 << 16):
                    data += part
                    if len(data) > MAX_PAGE_BYTES:
                        break
                return data.decode(response.charset or "utf-8", errors="replace")
        raise ValueError(f"{link} redirects too often")


class PublicResolver(AbstractResolver):
    """Resolves names to public addresses alone."""

    def __init__(self) -> None:
        self._resolver = aiohttp.ThreadedResolver()

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        """As aiohttp's resolver, without private, loopback and link-local addresses. Raises OSError without others."""
        found = await self._resolver.resolve(host, port, family)
        public = [entry for entry in found if ipaddress.ip_address(entry["host"]).is_global]
        if not public:
            raise OSError(f"{host} is not a public address")
        return public

    async def close(self) -> None:
        """Nothing is held."""
        await self._resolver.close()


def _is_inner_address(url: URL) -> bool:
    """Whether a link names an address (no resolver is asked then) that is not public."""
    try:
        return not ipaddress.ip_address(url.host or "").is_global
    except ValueError:
        return False


def page_text(html: str) -> str:
    """What a reader sees of a page, white space collapsed."""
    parser = _Text()
    parser.feed(html)
    return " ".join(" ".join(parser.parts).split())


def window(text: str, snippet: str, size: int = WINDOW) -> str:
    """`size` characters of a text around the place that a snippet is from; its beginning when that is not found.

    Snippets join pieces of a page with `...`: the longest piece is looked for, by its first words.
    """
    piece = max(snippet.replace("…", "...").split("..."), key=len).strip()
    place = text.lower().find(piece.lower()[:60]) if piece else -1
    start = max(0, place - size // 4) if place >= 0 else 0
    return text[start : start + size].strip()


class _Text(HTMLParser):
    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.parts: list[str] = []
        self._hidden: list[str] = []

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        if tag in _UNSEEN:
            self._hidden.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag in self._hidden:
            while self._hidden.pop() != tag:
                pass

    def handle_data(self, data: str) -> None:
        if not self._hidden:
            self.parts.append(data)
