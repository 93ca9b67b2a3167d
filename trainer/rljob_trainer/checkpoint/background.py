"""Commits that are written while training goes on.

Each rank copies its state and writes it in a thread (`ShardWriter`), leaving a mark beside the file when it is durable,
or when it failed. The driver waits for all marks in a thread of its own (`BackgroundCommit`), then makes the commit.
Ranks and driver share nothing but the folder: no call has to wait in line behind a training step.
"""

import json
import logging
import threading
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

from rljob_trainer.checkpoint.files import FileEntry, write_json_atomic
from rljob_trainer.checkpoint.store import Commit, CommitError, CommitWriter

log = logging.getLogger(__name__)
POLL_SECONDS = 0.05
MARK = ".rank-{rank:05d}.json"


class ShardWriter:
    """A rank's side: writes in a thread, one thing at a time."""

    def __init__(self, rank: int) -> None:
        self._rank = rank
        self._thread: threading.Thread | None = None

    def start(self, directory: str | Path, write: Callable[[], list[FileEntry]], limit: float) -> None:
        """Run `write` in the background and leave a mark in `directory`. Waits up to `limit` seconds for the one
        before; raises CommitError when that is still not done."""
        self.wait(limit)
        mark = Path(directory) / MARK.format(rank=self._rank)
        self._thread = threading.Thread(target=_write, args=(mark, write), name="commit", daemon=True)
        self._thread.start()

    def wait(self, limit: float) -> None:
        """Wait until nothing is written."""
        if self._thread is not None:
            self._thread.join(limit)
            if self._thread.is_alive():
                raise CommitError(f"rank {self._rank} did not finish writing its state within {limit:.0f} s")
            self._thread = None


def mark_written(directory: str | Path, rank: int, entries: list[FileEntry]) -> None:
    """Tell the driver that a rank's files are durable."""
    path = Path(directory) / MARK.format(rank=rank)
    write_json_atomic(path, {"files": [asdict(entry) for entry in entries]})


def _write(mark: Path, write: Callable[[], list[FileEntry]]) -> None:
    try:
        result: dict[str, object] = {"files": [asdict(entry) for entry in write()]}
    except Exception as error:
        log.exception("writing the state failed")
        result = {"error": f"{type(error).__name__}: {error}"}
    try:
        write_json_atomic(mark, result)
    except OSError:
        log.exception("the driver gave the commit up, or its folder cannot be written to")


class BackgroundCommit:
    """The driver's side: one commit under way."""

    def __init__(
        self,
        writer: CommitWriter,
        ranks: int,
        publish: Callable[[CommitWriter], Commit],
        *,
        limit: float,
        allowed: Callable[[], bool] = lambda: True,
    ) -> None:
        """writer: begun, its folder known to the ranks. publish: writes the rest, runs in the thread. limit: seconds
        for the ranks. allowed: false once this driver may publish nothing (its lease is lost)."""
        self._writer, self._ranks, self._publish = writer, ranks, publish
        self._limit, self._allowed = limit, allowed
        self._commit: Commit | None = None
        self._error: Exception | None = None
        self._given_up = threading.Event()
        self._thread = threading.Thread(target=self._run, name="commit", daemon=True)
        self._thread.start()

    @property
    def done(self) -> bool:
        """Whether it ended, well or not."""
        return not self._thread.is_alive()

    def result(self) -> Commit:
        """The commit, once `done`. Raises CommitError when it could not be written."""
        if self._error is not None:
            raise CommitError(f"the commit of step {self._writer.step} was not written: {self._error}") from self._error
        if self._commit is None:
            raise CommitError(f"the commit of step {self._writer.step} is still being written")
        return self._commit

    def wait(self, limit: float, tick: Callable[[], None] = lambda: None) -> Commit:
        """Wait for the end, calling `tick` about once a second. Raises CommitError, also after `limit` seconds."""
        deadline = time.monotonic() + limit
        while not self.done:
            if time.monotonic() > deadline:
                self.give_up()
                raise CommitError(f"the commit of step {self._writer.step} was not written within {limit:.0f} s")
            self._thread.join(min(1.0, max(0.0, deadline - time.monotonic())))
            tick()
        return self.result()

    def give_up(self) -> None:
        """Leave it; what was written is removed."""
        self._given_up.set()

    def _run(self) -> None:
        try:
            self._writer.add(self._entries())
            if self._given_up.is_set() or not self._allowed():
                raise CommitError("this driver may not commit any more")
            self._commit = self._publish(self._writer)
        except Exception as error:
            log.exception("a commit in the background failed")
            self._error = error
        finally:
            self._writer.discard()

    def _entries(self) -> list[FileEntry]:
        """Wait for the marks of all ranks and take them away."""
        marks = [self._writer.directory / MARK.format(rank=rank) for rank in range(self._ranks)]
        deadline = time.monotonic() + self._limit
        entries: list[FileEntry] = []
        for rank, mark in enumerate(marks):
            while not mark.exists():
                if self._given_up.is_set():
                    raise CommitError("given up")
                if time.monotonic() > deadline:
                    raise CommitError(f"rank {rank} did not write its state within {self._limit:.0f} s")
                time.sleep(POLL_SECONDS)
            told = json.loads(mark.read_text(encoding="utf-8"))
            if "error" in told:
                raise CommitError(f"rank {rank}: {told['error']}")
            entries += [FileEntry(**entry) for entry in told["files"]]
        for mark in marks:
            mark.unlink()
        return entries
