"""Reports where the run stands: a local file, and on a cluster the progress ConfigMap, from a background thread.

The training loop updates a dict and waits for no write, but for that of a commit's report. Writes happen at most every
`interval` seconds and at once at transitions; a write that fails is tried again with the next, so that a minute without
the apiserver costs nothing.
"""

import json
import logging
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rljob_api.contract.progress import PROGRESS_KEY, attempt_of, require_fields

from rljob_trainer.atomic_files import write_file
from rljob_trainer.cluster.environment import REQUEST_TIMEOUT_SECONDS
from rljob_trainer.metrics.jsonl import plain

logger = logging.getLogger(__name__)
Sink = Callable[[str], None]
"""Writes the JSON text somewhere; raises when it cannot."""
INTERVAL_SECONDS = 5.0
FINAL_WORD_SECONDS = 60.0
HEARTBEAT_SECONDS = 30
"""A report is written this often although nothing has changed: silence then means that the driver stands still."""


def now_rfc3339() -> str:
    """The time as Kubernetes writes it."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def file_sink(path: Path) -> Sink:
    """Replaces the file at `path` in one step."""

    def write(text: str) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_file(path, text, fsync=False)

    return write


class SupersededError(RuntimeError):
    """A later attempt reports already: this driver's word counts no more."""


def config_map_sink(api_client: Any, namespace: str, name: str, attempt: int) -> Sink:
    """Patches `progress.json` in the ConfigMap `name`, which the operator has created.

    Each write carries the version that was seen last, so that a driver which was stopped and wakes up after a later
    attempt has begun cannot write over its reports; it raises SupersededError instead.
    """
    from kubernetes import client

    api = client.CoreV1Api(api_client)
    version: str | None = None

    def look() -> str:
        found = api.read_namespaced_config_map(name, namespace, _request_timeout=REQUEST_TIMEOUT_SECONDS)
        theirs = attempt_of((found.data or {}).get(PROGRESS_KEY))
        if theirs > attempt:
            raise SupersededError(f"attempt {theirs} reports into {name}; this driver is attempt {attempt}")
        seen: str = found.metadata.resource_version
        return seen

    def write(text: str) -> None:
        nonlocal version
        for last in (False, False, True):
            seen = version or look()
            body = {"metadata": {"resourceVersion": seen}, "data": {PROGRESS_KEY: text}}
            try:
                written = api.patch_namespaced_config_map(
                    name, namespace, body, _request_timeout=REQUEST_TIMEOUT_SECONDS
                )
            except client.ApiException as error:
                version = None
                if error.status != 409 or last:
                    raise
            else:
                version = written.metadata.resource_version
                return

    return write


class ProgressReporter:
    """Keeps the latest progress and writes it to every sink in the background."""

    def __init__(self, initial: dict[str, Any], sinks: list[Sink], interval: float = INTERVAL_SECONDS) -> None:
        """`initial` and later fields: of `rljob_api.contract.progress.Progress`, by their names in JSON."""
        require_fields(initial)
        self._state = dict(initial)
        self._sinks = [_SinkState(sink) for sink in sinks]
        self._interval = interval
        self._lock = threading.Lock()
        self._tried = threading.Condition(self._lock)
        """Notified when a report was written, or could not be."""
        self._wake = threading.Event()
        self._closing = threading.Event()
        self._version = 0
        self._thread = threading.Thread(target=self._run, name="progress", daemon=True)
        self._thread.start()

    def update(self, *, transition: bool = False, **fields: Any) -> None:
        """Set fields; with `transition` they are written at once. Raises TypeError for a field that there is not."""
        require_fields(fields)
        with self._lock:
            self._state.update(fields)
            self._version += 1
        if transition:
            self._wake.set()

    def snapshot(self) -> dict[str, Any]:
        """The fields as they stand."""
        with self._lock:
            return dict(self._state)

    def flush(self, limit: float) -> bool:
        """Wait up to `limit` seconds until what is set now has been given to every sink. False: one did not take it;
        it is tried again in the background."""
        with self._tried:
            version = self._version
            self._wake.set()
            self._tried.wait_for(lambda: all(sink.tried >= version for sink in self._sinks), timeout=limit)
            return all(sink.written >= version for sink in self._sinks)

    def named_commits(self) -> set[str]:
        """Names of commits that a reader of a sink may find as `lastCommit`: that of the last report it took, and those
        of later ones, of which it is not known whether they arrived."""
        return {name for sink in self._sinks for name in sink.commits}

    def close(self, limit: float = FINAL_WORD_SECONDS, **fields: Any) -> bool:
        """Set the last fields and try to write them for up to `limit` seconds. False: a sink did not take them."""
        self.update(**fields)
        self._closing.set()
        self._wake.set()
        self._thread.join(timeout=self._interval + 10.0)
        deadline = time.monotonic() + limit
        pause = 0.5
        while not self._write(final=True):
            if time.monotonic() + pause > deadline:
                logger.error("the final progress could not be written within %.0f s", limit)
                return False
            time.sleep(pause)
            pause = min(pause * 2, 8.0)
        return True

    def _run(self) -> None:
        last, version = time.monotonic(), -1
        while not self._closing.is_set():
            self._wake.wait(timeout=self._interval)
            self._wake.clear()
            with self._lock:
                if self._version == version and time.monotonic() - last >= HEARTBEAT_SECONDS:
                    self._version += 1
                if self._version != version:
                    last, version = time.monotonic(), self._version
            if not self._closing.is_set():
                self._write()

    def _write(self, *, final: bool = False) -> bool:
        with self._lock:
            version = self._version
            text = json.dumps(plain({**self._state, "time": now_rfc3339()}), sort_keys=True)
            commit = (self._state.get("lastCommit") or {}).get("name")
        for sink in self._sinks:
            if sink.written != version or (final and sink.failures):
                sink.write(text, version, commit)
        with self._tried:
            self._tried.notify_all()
        return all(sink.written == version for sink in self._sinks)


class _SinkState:
    def __init__(self, sink: Sink) -> None:
        self._sink = sink
        self.written = self.tried = -1
        self.failures = 0
        self.commits: frozenset[str] = frozenset()
        """See `ProgressReporter.named_commits`."""

    def write(self, text: str, version: int, commit: str | None) -> None:
        """Give `text`, which names `commit` as the last one, to the sink."""
        named = frozenset() if commit is None else frozenset({commit})
        self.commits |= named  # before it is tried: a write whose answer is lost may have arrived
        self._try(text, version, named)
        self.tried = version

    def _try(self, text: str, version: int, named: frozenset[str]) -> None:
        try:
            self._sink(text)
        except SupersededError as error:
            logger.error("progress is no longer written: %s", error)
            self.written = version  # nothing to try again: the lease ends this driver
        except Exception as error:  # noqa: BLE001 - training goes on whatever the apiserver says; logged, tried again
            self.failures += 1
            if self.failures in (1, 10, 100) or self.failures % 1000 == 0:
                logger.warning("progress not written (%d times in a row): %s", self.failures, error)
        else:
            if self.failures:
                logger.info("progress written again after %d failures", self.failures)
            self.failures = 0
            self.written = version
            self.commits = named
