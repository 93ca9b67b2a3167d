"""A retriever that answers as late as it is told: `GET /delay/<seconds>`. Runs in a pod, by `python -c`.

Standard library alone: it is sent to the pod as text.
"""

import json
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

PORT = 8000


class Handler(BaseHTTPRequestHandler):
    """Search-R1's `POST /retrieve`."""

    delay = 0.0

    def do_GET(self) -> None:
        """`/delay/<seconds>`; anything else is a probe."""
        if self.path.startswith("/delay/"):
            Handler.delay = float(self.path.rpartition("/")[2])
        self._answer({"delay": Handler.delay})

    def do_POST(self) -> None:
        """The same document for each query."""
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        time.sleep(Handler.delay)
        found = [{"document": {"id": "0", "contents": "Title\nNothing of use."}, "score": 1.0}] * int(body["topk"])
        self._answer({"result": [found for _ in body["queries"]]})

    def _answer(self, value: Any) -> None:
        data = json.dumps(value).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


if __name__ == "__main__":
    ThreadingHTTPServer(("0.0.0.0", PORT), Handler).serve_forever()
