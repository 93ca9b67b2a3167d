"""A small server that speaks the Hub's protocol for data sets."""

import hashlib
import http.server
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import unquote, urlparse

COMMIT = "5d" * 20


class Hub(http.server.ThreadingHTTPServer):
    """Serves `files` of one data set, `org/made-up`, as the Hub does."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.files: dict[str, bytes] = {}
        self.requests = 0

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class _Handler(http.server.BaseHTTPRequestHandler):
    server: Hub

    def log_message(self, *_: Any) -> None:
        pass

    def do_HEAD(self) -> None:
        self._serve(body=False)

    def do_GET(self) -> None:
        self._serve(body=True)

    def _serve(self, *, body: bool) -> None:
        self.server.requests += 1
        path = unquote(urlparse(self.path).path)
        prefix = "/datasets/org/made-up/resolve/"
        if path.startswith("/api/datasets/org/made-up"):
            revision = path.partition("/revision/")[2]
            if revision not in ("", "main", COMMIT):
                return self._answer(404, b"{}", {"X-Error-Code": "RevisionNotFound"}, body)
            names = [{"rfilename": name} for name in self.server.files]
            content = json.dumps({"id": "org/made-up", "sha": COMMIT, "siblings": names}).encode()
            return self._answer(200, content, {"Content-Type": "application/json"}, body)
        if path.startswith(prefix):
            name = path.removeprefix(prefix).partition("/")[2]
            if name in self.server.files:
                content = self.server.files[name]
                etag = hashlib.sha256(content).hexdigest()
                return self._answer(200, content, {"X-Repo-Commit": COMMIT, "ETag": f'"{etag}"'}, body)
            return self._answer(404, b"", {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": COMMIT}, body)
        return self._answer(404, b"{}", {"X-Error-Code": "RepoNotFound"}, body)

    def _answer(self, status: int, content: bytes, headers: dict[str, str], body: bool) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(content)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if body:
            self.wfile.write(content)


@contextmanager
def serving() -> Iterator[Hub]:
    """The server, for as long as the block lasts."""
    server = Hub()
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join(5)
        server.server_close()
