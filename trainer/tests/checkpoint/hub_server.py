"""A Hub in a thread: creates repositories, takes commits with their files inline, and can be told to fail."""

import base64
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass
class LocalHub:
    """What was sent."""

    token: str
    url: str = ""
    repositories: list[dict[str, Any]] = field(default_factory=list)
    commits: list[tuple[str, dict[str, bytes]]] = field(default_factory=list)
    failures: int = 0
    """So many commits are answered with 503."""
    gate: threading.Event | None = None
    """A commit waits for it."""


@contextmanager
def local_hub(token: str = "hf_good") -> Iterator[LocalHub]:
    hub = LocalHub(token)

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *arguments: Any) -> None:
            pass

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            if self.headers.get("Authorization") != f"Bearer {hub.token}":
                self.answer(401, {"error": "Invalid username or password."})
            elif self.path == "/api/repos/create":
                hub.repositories.append(json.loads(body))
                self.answer(200, {"url": f"{hub.url}/org/model"})
            elif "/preupload/" in self.path:
                files = json.loads(body)["files"]
                modes = [{"path": file["path"], "uploadMode": "regular", "shouldIgnore": False} for file in files]
                self.answer(200, {"files": modes})
            elif "/commit/" in self.path:
                self.commit(body)
            else:
                self.answer(404, {"error": "not found"})

        def commit(self, body: bytes) -> None:
            if hub.gate is not None:
                hub.gate.wait(30)
            if hub.failures:
                hub.failures -= 1
                self.answer(503, {"error": "busy"})
                return
            lines = [json.loads(line) for line in body.splitlines() if line.strip()]
            files = {
                line["value"]["path"]: base64.b64decode(line["value"]["content"])
                for line in lines
                if line["key"] == "file"
            }
            header = next(line["value"] for line in lines if line["key"] == "header")
            hub.commits.append((header["summary"], files))
            self.answer(200, {"commitUrl": f"{hub.url}/org/model/commit/abc", "commitOid": "abc"})

        def answer(self, status: int, content: dict[str, Any]) -> None:
            data = json.dumps(content).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hub.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        thread.join(10)
