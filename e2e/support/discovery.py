"""Prometheus' discovery of pods, as a service of ours: Debian's Prometheus is built without that of Kubernetes.

The targets and their `__meta_kubernetes_pod_*` labels are those that `kubernetes_sd_configs` of role `pod` finds: one
for each port of each container.
"""

import contextlib
import json
import re
import threading
import urllib.request
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

META = "__meta_kubernetes_"
POD = f"{META}pod_"


def plain(label: str) -> str:
    """A label's name as Prometheus writes it."""
    return re.sub(r"\W", "_", label)


def targets(pods: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Groups of targets, as http_sd expects them."""
    groups = []
    for pod in pods:
        address = pod.get("status", {}).get("podIP")
        if not address:
            continue
        of_pod = {
            f"{META}namespace": pod["metadata"]["namespace"],
            f"{POD}name": pod["metadata"]["name"],
            f"{POD}phase": pod["status"]["phase"],
        }
        for name, value in pod["metadata"].get("labels", {}).items():
            of_pod |= {f"{POD}label_{plain(name)}": value, f"{POD}labelpresent_{plain(name)}": "true"}
        for container in pod["spec"]["containers"]:
            for port in container.get("ports", []):
                number = str(port["containerPort"])
                of_port = {
                    f"{POD}container_name": container["name"],
                    f"{POD}container_port_name": port.get("name", ""),
                    f"{POD}container_port_number": number,
                }
                groups.append({"targets": [f"{address}:{number}"], "labels": of_pod | of_port})
    return groups


@contextlib.contextmanager
def serving(apiserver: str) -> Iterator[str]:
    """The address at which the targets of all pods are asked for. `apiserver`: an address that needs no credentials."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            with urllib.request.urlopen(f"{apiserver}/api/v1/pods", timeout=10) as answer:
                body = json.dumps(targets(json.load(answer)["items"])).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            """Quiet."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/pods"
        finally:
            server.shutdown()
