"""A real Prometheus: Debian's binary, unpacked without installing it (its package would start a service)."""

import contextlib
import json
import os
import shutil
import subprocess
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml

from e2e.support.wait import wait_for

Series = list[tuple[dict[str, str], list[tuple[float, float]]]]


def binary(name: str) -> str:
    """Path of `prometheus` or `promtool`: from the PATH, else from Debian's package, kept in RLJob's cache."""
    if found := shutil.which(name):
        return found
    cache = os.environ.get("RLJOB_CACHE") or Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "rljob")
    folder = Path(cache, "prometheus")
    path = folder / "usr" / "bin" / name
    if not path.exists():
        _unpack(folder)
    return str(path)


def available() -> bool:
    """Whether `binary` can find or make one here."""
    return bool(shutil.which("promtool") or shutil.which("apt-get"))


def _unpack(folder: Path) -> None:
    download = folder / "download"
    download.mkdir(parents=True, exist_ok=True)
    command = ["apt-get", "download", "-q", "prometheus"]
    if subprocess.run(command, cwd=download, capture_output=True, timeout=300, check=False).returncode:
        subprocess.run(["apt-get", "update", "-q"], capture_output=True, timeout=300, check=True)
        subprocess.run(command, cwd=download, capture_output=True, timeout=300, check=True)
    (package,) = sorted(download.glob("prometheus_*.deb"))[-1:]
    subprocess.run(["dpkg", "-x", str(package), str(folder)], capture_output=True, timeout=120, check=True)


class Prometheus:
    """A running one, over HTTP (through `prefix`, such as nsenter, where it lives in another network)."""

    def __init__(self, port: int, prefix: Sequence[str] = ()) -> None:
        self._url, self._prefix = f"http://127.0.0.1:{port}", list(prefix)

    def get(self, path: str, **arguments: Any) -> Any:
        """The data of an API call. Raises AssertionError with Prometheus' message."""
        url = f"{self._url}/api/v1/{path}?{urllib.parse.urlencode(arguments)}"
        if self._prefix:
            done = subprocess.run(
                [*self._prefix, "curl", "-sS", "-m", "20", url], capture_output=True, text=True, timeout=40, check=False
            )
            assert done.returncode == 0, done.stderr
            answer = json.loads(done.stdout)
        else:
            try:
                with urllib.request.urlopen(url, timeout=20) as reply:
                    answer = json.load(reply)
            except urllib.error.HTTPError as error:
                text = error.read().decode(errors="replace")
                if not text.startswith("{"):  # 503 while it starts
                    raise AssertionError(f"{path}: {error.code} {text[:200]}") from error
                answer = json.loads(text)
        assert answer["status"] == "success", f"{arguments}: {answer.get('error')}"
        return answer["data"]

    def range(self, expr: str, start: float, end: float, step: float = 2.0) -> Series:
        """Series of an expression with their finite points."""
        found = self.get("query_range", query=expr, start=start, end=end, step=step)["result"]
        series = []
        for one in found:
            points = [(float(moment), float(value)) for moment, value in one["values"]]
            if points := [(moment, value) for moment, value in points if value == value]:
                series.append((one["metric"], points))
        return series

    def targets(self) -> list[dict[str, Any]]:
        """Active targets."""
        active: list[dict[str, Any]] = self.get("targets", state="active")["activeTargets"]
        return active

    def alerts(self) -> list[dict[str, Any]]:
        """Alerts that are pending or fire."""
        found: list[dict[str, Any]] = self.get("alerts")["alerts"]
        return found


@contextlib.contextmanager
def running(folder: Path, config: dict[str, Any], port: int, prefix: Sequence[str] = ()) -> Iterator[Prometheus]:
    """A Prometheus with this configuration, data in `folder`, listening on 127.0.0.1."""
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "prometheus.yml"
    file.write_text(yaml.safe_dump(config))
    command = [
        *prefix, binary("prometheus"), f"--config.file={file}", f"--storage.tsdb.path={folder / 'data'}",
        f"--web.listen-address=127.0.0.1:{port}", "--log.level=warn",
    ]  # fmt: skip
    with (folder / "prometheus.log").open("w") as log, subprocess.Popen(command, stdout=log, stderr=log) as process:
        try:
            client = Prometheus(port, prefix)

            def up() -> bool:
                assert process.poll() is None, (folder / "prometheus.log").read_text()[-2000:]
                try:
                    return bool(client.get("status/runtimeinfo"))
                except (OSError, AssertionError):
                    return False

            wait_for("Prometheus", up, seconds=60, every=0.3)
            yield client
        finally:
            process.terminate()
            try:
                process.wait(timeout=30)
            except subprocess.TimeoutExpired:
                process.kill()


def now() -> float:
    """Unix time."""
    return time.time()
