"""Evaluation without the retriever (`evaluation.withoutRetriever`): one inside the driver answers unrelated passages,
and what the model then knows, it knows by itself.

It lives on the driver's node for the length of one evaluation and needs nothing but the corpus.
"""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from rljob_api.v1alpha1.retriever import RetrieverSpec

from rljob_trainer.retriever.random_passages import load_random

MAX_REQUEST_BYTES = 1 << 20


@contextmanager
def unrelated_passages(spec: RetrieverSpec, job_dir: Path, host: str) -> Iterator[str]:
    """Serve `/retrieve` on a free port of `host` while the block runs; gives the address."""
    searcher = load_random(spec, str(job_dir))
    lock = threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        timeout = 60

        def do_POST(self) -> None:
            length = min(int(self.headers.get("Content-Length", "0")), MAX_REQUEST_BYTES)
            try:
                request = json.loads(self.rfile.read(length))
                with lock:
                    found = searcher.search(request["queries"], request.get("topk") or spec.topk)
            except (ValueError, KeyError, TypeError) as error:
                self._answer(422, {"detail": f"{type(error).__name__}: {error}"})
                return
            scored = bool(request.get("return_scores"))
            self._answer(200, {"result": [[_entry(hit, scored) for hit in hits] for hits in found]})

        def log_message(self, format: str, *args: Any) -> None:
            """Requests are not logged."""

        def _answer(self, status: int, content: dict[str, Any]) -> None:
            body = json.dumps(content).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

    server = ThreadingHTTPServer((host, 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, name="unrelated-retriever", daemon=True)
    thread.start()
    try:
        yield f"http://{host}:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join(timeout=10.0)


def _entry(hit: Any, scored: bool) -> Any:
    return {"document": hit.document, "score": hit.score} if scored else hit.document
