"""One metrics port for all processes of a pod, or of a run on this machine.

A pod may hold several ranks, or ranks and engines, and Prometheus scrapes one port of it. Every process serves its own
numbers at a free local port and leaves a note of it in a common folder; the one that gets the common port serves the
numbers of all. When it dies, another takes the port over within seconds.
"""

import logging
import os
import tempfile
import threading
import urllib.error
import urllib.request
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from prometheus_client import CollectorRegistry, Metric, start_http_server
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector
from rljob_api.contract import environment_variables as variables

logger = logging.getLogger(__name__)
TRY_EVERY_SECONDS = 3.0
ANSWER_SECONDS = 2.0
AT_ONCE = 16
SILENT = "rljob_silent_processes"


def common_folder(job_dir: str | Path) -> Path:
    """Where the processes that share a port find one another: the pod's /tmp, or the job's directory."""
    if variables.NAME in os.environ:
        return Path(tempfile.gettempdir(), "rljob-metrics")
    return Path(job_dir, ".metrics")


class SharedPort:
    """This process's part in it."""

    def __init__(self, registry: CollectorRegistry, folder: Path) -> None:
        """Serve `registry` at a free port of this machine and say so in `folder`."""
        self._registry, self._folder = registry, folder
        server, _ = start_http_server(0, addr="127.0.0.1", registry=registry)
        self.own_port = int(server.server_port)
        self._note = f"{os.getpid()}-{_started(os.getpid())}-{self.own_port}"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / self._note).touch()

    def serve_all(self, port: int) -> int:
        """Serve the numbers of all processes at `port` (0: a free one). Returns the port. Raises OSError when it is
        busy."""
        everyone = CollectorRegistry()
        everyone.register(_Everyone(self._registry, self._folder, self._note))
        server, _ = start_http_server(port, registry=everyone)
        return int(server.server_port)

    def serve_all_once_free(self, port: int) -> None:
        """`serve_all` as soon as nobody else of this pod does."""
        threading.Thread(target=self._take, args=(port,), name="metrics-port", daemon=True).start()

    def _take(self, port: int) -> None:
        pause = threading.Event()
        while True:
            try:
                self.serve_all(port)
            except OSError:
                pause.wait(TRY_EVERY_SECONDS)
            else:
                return


class _Everyone(Collector):
    """The metrics of this process and of all that left a note in the folder, family by family."""

    def __init__(self, own: CollectorRegistry, folder: Path, note: str) -> None:
        self._own, self._folder, self._note = own, folder, note

    def collect(self) -> Iterable[Metric]:
        """See prometheus_client."""
        ports = [port for note in _notes(self._folder) if note != self._note and (port := _port(self._folder, note))]
        with ThreadPoolExecutor(AT_ONCE) as pool:
            pages = list(pool.map(_page, ports))
        families: dict[str, Metric] = {}
        for family in [
            *self._own.collect(),
            *(family for page in pages if page is not None for family in _parse(page)),
        ]:
            if family.name in families:
                families[family.name].samples += family.samples
            else:
                families[family.name] = copy = Metric(family.name, family.documentation, family.type)
                copy.samples = list(family.samples)
        yield from families.values()
        help_text = "Processes beside this one that did not answer this scrape."
        yield GaugeMetricFamily(SILENT, help_text, value=sum(page is None for page in pages))


def _parse(page: str) -> Iterable[Metric]:
    return (family for family in text_string_to_metric_families(page) if family.name != SILENT)


def _notes(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def _port(folder: Path, note: str) -> int | None:
    """The port of a note whose process is there; the note of one that is gone is removed."""
    process, started, port = note.split("-")
    if _started(int(process)) == started:
        return int(port)
    (folder / note).unlink(missing_ok=True)
    return None


def _page(port: int) -> str | None:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=ANSWER_SECONDS) as answer:
            text: str = answer.read().decode()
            return text
    except (OSError, urllib.error.URLError) as error:
        logger.info("the process at metrics port %d did not answer: %s", port, error)
        return None


def _started(process: int) -> str | None:
    """When a process was started, in ticks since boot: with its number it names the process. None: it is gone."""
    try:
        with open(f"/proc/{process}/stat", encoding="utf-8") as file:
            return file.read().rpartition(")")[2].split()[19]
    except OSError:
        return None
