"""Stands in for the Ray dashboards of all clusters at once: the few calls that KubeRay makes for a RayJob.

KubeRay reaches it as its HTTP proxy: a request's host is then `<cluster>-head-svc.<namespace>.svc...`, and no name has
to be resolved. A job runs from its submission on, and has succeeded once the file `<folder>/<namespace>` is there.
"""

import argparse
import time
from pathlib import Path

from aiohttp import web

LOOK_SECONDS = 0.5


class Dashboards:
    """Submitted jobs by the dashboard's host."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._jobs: dict[tuple[str, str], int] = {}
        """Host and submission id: when it was submitted, in milliseconds since the epoch."""
        self._ended: dict[str, tuple[float, bool]] = {}

    def _over(self, host: str) -> bool:
        namespace = host.split(".")[1]
        looked, over = self._ended.get(namespace, (0.0, False))
        if not over and time.monotonic() - looked > LOOK_SECONDS:
            over = (self._folder / namespace).exists()
            self._ended[namespace] = (time.monotonic(), over)
        return over

    async def submit(self, request: web.Request) -> web.Response:
        """POST /api/jobs/"""
        submission: str = (await request.json())["submission_id"]
        self._jobs[request.host, submission] = round(time.time() * 1000)
        return web.json_response({"job_id": submission, "submission_id": submission})

    async def info(self, request: web.Request) -> web.Response:
        """GET /api/jobs/<id>; 404 before the submission, which KubeRay then makes."""
        submission = request.match_info["id"]
        begun = self._jobs.get((request.host, submission))
        if begun is None:
            return web.Response(status=404, text="no such job")
        over = self._over(request.host)
        body = {
            "type": "SUBMISSION",
            "job_id": submission,
            "submission_id": submission,
            "status": "SUCCEEDED" if over else "RUNNING",
            "entrypoint": "simulated",
            "message": "simulated",
            "start_time": begun,
        }
        return web.json_response(body | ({"end_time": round(time.time() * 1000)} if over else {}))

    async def end(self, _: web.Request) -> web.Response:
        """POST /api/jobs/<id>/stop and DELETE."""
        return web.json_response({"stopped": True})


def main() -> None:
    """Serve until ended."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--folder", type=Path, required=True)
    options = parser.parse_args()
    dashboards = Dashboards(options.folder)
    app = web.Application()
    app.router.add_post("/api/jobs/", dashboards.submit)
    app.router.add_get("/api/jobs/{id}", dashboards.info)
    app.router.add_post("/api/jobs/{id}/stop", dashboards.end)
    app.router.add_delete("/api/jobs/{id}", dashboards.end)
    web.run_app(app, host="127.0.0.1", port=options.port, access_log=None, print=None)


if __name__ == "__main__":
    main()
