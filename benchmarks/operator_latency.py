"""The operator: seconds from applying an RLJob to its RayJob being there, and the process's memory.

Against $RLJOB_E2E_KUBECONFIG (with RLJOB_E2E_YES=1, the CRDs of RLJob and KubeRay, and kubectl on the PATH), else
against a control plane that is brought up for the purpose and taken down again unless one was up. The operator is a
process of its own that serves one namespace; jobs have no retriever, for which a RayJob would wait. Latencies are by
this machine's clock, from the return of the create call to the RayJob's ADDED event in a watch.
"""

import asyncio
import contextlib
import json
import os
import ssl
import statistics
import subprocess
import sys
import time
import uuid
from collections.abc import AsyncIterator, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import aiohttp
import psutil
import yaml

from e2e import which_cluster

ROOT = Path(__file__).resolve().parents[1]
JOBS = 20
LATENCY_GOAL, MEMORY_GOAL = 2.0, 150.0
GROUP = "apis/rljob.io/v1alpha1"
RAY_JOBS = "/apis/ray.io/v1/rayjobs"


def manifest(name: str) -> dict[str, Any]:
    """A job of this version that starts at once."""
    return {
        "apiVersion": "rljob.io/v1alpha1",
        "kind": "RLJob",
        "metadata": {"name": name},
        "spec": {
            "model": {"randomInit": {"maxPositionEmbeddings": 4096}, "tokenizerPath": "tokenizer", "dtype": "float32"},
            "data": {"train": {"path": "train.jsonl", "applyChatTemplate": False}},
            "rollout": {
                "engine": "torch", "numRollout": 1, "batchSize": 4, "nSamplesPerPrompt": 2,
                "sampling": {"maxResponseLength": 64},
            },
            "reward": {"functions": [{"name": "em"}]},
            "trainer": {"backend": "fsdp"},
        },
    }  # fmt: skip


@contextlib.contextmanager
def cluster() -> Iterator[str]:
    """Path of a kubeconfig."""
    if given := which_cluster.given():
        yield given
        return
    from e2e.cluster import kuberay
    from e2e.cluster.cluster import Cluster
    from e2e.cluster.paths import Paths

    ours = Cluster(Paths.from_env())
    was_up = ours.mode() is not None
    ours.up(control_plane_only=True)
    try:
        os.environ["PATH"] = f"{ours.tools()}{os.pathsep}{os.environ['PATH']}"
        kubectl = ours.kubectl()
        kuberay.apply_crds(ours.paths, kubectl)
        ours.daemons.wait_ready(RAY_JOBS, partial(kubectl.answers, RAY_JOBS))
        yield str(ours.paths.admin_kubeconfig)
    finally:
        if not was_up:
            ours.down()


class Client:
    """The few calls that the benchmark makes itself."""

    def __init__(self, kubeconfig: str) -> None:
        import kopf

        os.environ["KUBECONFIG"] = kubeconfig
        self.info = kopf.login_with_kubeconfig(settings=kopf.OperatorSettings())
        self.ssl: ssl.SSLContext = self.info.as_ssl_context()
        self.headers = self.info.as_http_headers()

    def url(self, path: str) -> str:
        """Address of a path."""
        return f"{self.info.server.rstrip('/')}/{path}"

    async def call(self, session: aiohttp.ClientSession, method: str, path: str, body: Any = None) -> Any:
        """One call. Raises aiohttp.ClientResponseError."""
        async with session.request(method, self.url(path), json=body, headers=self.headers, ssl=self.ssl) as answer:
            if answer.status >= 400:
                raise RuntimeError(f"{method} {path}: {answer.status} {await answer.text()}")
            return await answer.json()

    async def added(self, session: aiohttp.ClientSession, path: str) -> AsyncIterator[str]:
        """Names of objects as they come into being, from now on."""
        url = self.url(f"{path}?watch=true&timeoutSeconds=300")
        async with session.get(url, headers=self.headers, ssl=self.ssl) as answer:
            async for line in answer.content:
                event = json.loads(line)
                if event["type"] == "ADDED":
                    yield event["object"]["metadata"]["name"]


async def measure(client: Client, namespace: str) -> list[float]:
    """Seconds for each of JOBS jobs, one after another."""
    # A watch's lines may be long: a RayJob holds three pod templates.
    async with aiohttp.ClientSession(read_bufsize=2**20, timeout=aiohttp.ClientTimeout(total=300)) as session:
        seconds = []
        ray_jobs = client.added(session, f"apis/ray.io/v1/namespaces/{namespace}/rayjobs")
        for index in range(JOBS):
            name = f"bench-{index}"
            await client.call(session, "POST", f"{GROUP}/namespaces/{namespace}/rljobs", manifest(name))
            begun = time.perf_counter()
            async with asyncio.timeout(60):
                async for created in ray_jobs:
                    if created == f"{name}-1":
                        break
            seconds.append(time.perf_counter() - begun)
        return seconds


def wait_ready(process: subprocess.Popen[bytes], port: int) -> None:
    """Until the operator says that it is ready."""
    import httpx

    end = time.monotonic() + 60
    while time.monotonic() < end and process.poll() is None:
        with contextlib.suppress(httpx.HTTPError):
            if httpx.get(f"http://127.0.0.1:{port}/readyz", timeout=5).status_code == 200:
                time.sleep(2)  # the watches open a moment later
                return
        time.sleep(0.2)
    raise RuntimeError("the operator did not become ready")


def line(name: str, value: float, unit: str, goal: float) -> None:
    """Print one result; smaller is better."""
    print(json.dumps({"name": name, "value": round(value, 3), "unit": unit, "goal": goal, "met": value <= goal}))


def main() -> None:
    """Run the benchmark."""
    namespace, port = f"bench-{uuid.uuid4().hex[:8]}", 18234
    with cluster() as kubeconfig:
        client = Client(kubeconfig)

        def kubectl(*arguments: str, stdin: str | None = None) -> None:
            subprocess.run(["kubectl", *arguments], input=stdin, text=True, check=True, timeout=120, stdout=sys.stderr)

        kubectl("apply", "--server-side", "--force-conflicts", "-f", str(ROOT / "crds/rljobs.yaml"))
        kubectl(
            "apply",
            "-f",
            "-",
            stdin=yaml.safe_dump({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": namespace}}),
        )
        command = [sys.executable, "-m", "rljob_operator", "--watch-namespaces", namespace, "--port", str(port)]
        operator = subprocess.Popen([*command, "--log-level", "WARNING"], stdout=sys.stderr)
        try:
            wait_ready(operator, port)
            seconds = asyncio.run(measure(client, namespace))
            rss = psutil.Process(operator.pid).memory_info().rss / 2**20
        finally:
            operator.terminate()
            operator.wait(timeout=30)
            # Nobody is left to take the finalizers away.
            for name in (f"bench-{index}" for index in range(JOBS)):
                patch = ["--type=merge", "-p", '{"metadata":{"finalizers":[]}}', "-n", namespace]
                subprocess.run(
                    ["kubectl", "patch", "rljob", name, *patch], check=False, timeout=30, capture_output=True
                )
            kubectl("delete", "namespace", namespace, "--wait=false")
    line("operator_apply_to_rayjob_seconds_median", statistics.median(seconds), "s", LATENCY_GOAL)
    line("operator_apply_to_rayjob_seconds_max", max(seconds), "s", 2 * LATENCY_GOAL)
    line("operator_rss", rss, "MB", MEMORY_GOAL)


if __name__ == "__main__":
    main()
