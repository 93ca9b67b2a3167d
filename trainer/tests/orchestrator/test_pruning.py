"""Old commits go only once the new one is reported, and nothing that happens meanwhile costs a commit."""

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from rljob_trainer.checkpoint import background, list_commits, prune
from rljob_trainer.checkpoint import store as store_module
from rljob_trainer.checkpoint.loop_state import LoopState
from rljob_trainer.orchestrator.checkpointer import choose_commit

from . import committing
from .committing import INCARNATION, Committing

MODES = pytest.mark.parametrize("asynchronous", [False, True], ids=["at once", "in the background"])


def steps(job_dir: Path) -> list[int]:
    return [commit.step for commit in list_commits(job_dir)]


@MODES
def test_a_driver_that_dies_while_it_removes_old_commits_has_lost_nothing(tmp_path: Path, asynchronous: bool) -> None:
    command = [sys.executable, committing.__file__, str(tmp_path), "1"] + ["--asynchronous"] * asynchronous
    ended = subprocess.run(command, timeout=120, check=False)
    assert ended.returncode == -signal.SIGKILL
    reported = json.loads((tmp_path / "progress.json").read_text())["lastCommit"]
    assert reported["step"] == 2
    commit = choose_commit(tmp_path, reported["name"])  # what the operator tells the next attempt
    assert commit is not None
    assert LoopState.from_json(commit.loop_state()).step == 2


class Apiserver:
    """Takes reports while it is there; what it has is what an operator reads."""

    def __init__(self) -> None:
        self.there, self.text = True, "{}"

    def __call__(self, text: str) -> None:
        if not self.there:
            raise ConnectionError("no route to host")
        self.text = text

    def last_commit(self) -> str:
        name: str = json.loads(self.text)["lastCommit"]["name"]
        return name


@MODES
def test_the_commit_that_a_report_names_stays_until_another_is_reported(tmp_path: Path, asynchronous: bool) -> None:
    apiserver = Apiserver()
    run = Committing(tmp_path, [apiserver], asynchronous=asynchronous)
    run.commit(1)
    run.commits.wait()
    apiserver.there = False
    for step in (2, 3):
        run.commit(step)
        run.commits.wait()
        assert choose_commit(tmp_path, apiserver.last_commit()) is not None
    apiserver.there = True
    run.commit(4)
    run.commits.wait()
    assert apiserver.last_commit() == f"{INCARNATION}/commits/step-000004"
    assert steps(tmp_path) == [4]
    run.close()


def test_a_report_whose_answer_is_lost_may_have_arrived(tmp_path: Path) -> None:
    apiserver = Apiserver()

    def answer_lost(text: str) -> None:
        apiserver(text)
        if "step-000002" in text:
            apiserver.there = False
            raise TimeoutError("read timed out")

    run = Committing(tmp_path, [answer_lost])
    for step in (1, 2, 3):
        run.commit(step)
    assert apiserver.last_commit().endswith("step-000002")
    assert choose_commit(tmp_path, apiserver.last_commit()) is not None
    run.close()


@MODES
def test_a_volume_that_removes_nothing_does_not_fail_the_run(
    tmp_path: Path, asynchronous: bool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(*args: Any, **options: Any) -> None:
        raise OSError(16, "Device or resource busy")

    rename = os.rename

    def only_new(source: Any, target: Any) -> None:
        if ".trash-" in str(target):
            refuse()
        rename(source, target)

    run = Committing(tmp_path, [], asynchronous=asynchronous)
    with monkeypatch.context() as patch:
        patch.setattr(store_module.os, "rename", only_new)
        for step in (1, 2):
            run.commit(step)
            run.commits.wait()
        assert steps(tmp_path) == [1, 2]
        assert "Device or resource busy" in caplog.text
    with monkeypatch.context() as patch:
        patch.setattr(store_module.shutil, "rmtree", refuse)
        run.commit(3)
        run.commits.wait()
    assert steps(tmp_path) == [3]
    run.commit(4)  # and what was left over goes when it can
    run.commits.wait()
    assert steps(tmp_path) == [4]
    assert not list(tmp_path.glob("attempts/*/commits/.trash-*"))
    run.close()


class Reads:
    """Bytes of the files that this process opens to read."""

    def __init__(self) -> None:
        self.on, self.bytes, self.files = False, 0, 0
        sys.addaudithook(self._hook)

    def _hook(self, event: str, args: tuple[Any, ...]) -> None:
        if not self.on or event != "open" or not isinstance(args[0], str | os.PathLike | bytes):
            return
        path, flags = os.fsdecode(args[0]), args[2]
        if flags & os.O_ACCMODE == os.O_RDONLY and "/commits/" in path and os.path.isfile(path):
            self.files += 1
            self.bytes += os.path.getsize(path)


@pytest.fixture(scope="module")
def reads() -> Iterator[Reads]:
    found = Reads()
    yield found
    found.on = False


@pytest.mark.parametrize("keep", [1, 10])
def test_what_a_commit_reads_does_not_grow_with_those_before(tmp_path: Path, keep: int, reads: Reads) -> None:
    run = Committing(tmp_path, [], keep=keep)
    seen = set()
    for step in range(1, 7):
        reads.bytes = reads.files = 0
        reads.on = True
        run.commit(step)
        reads.on = False
        seen.add((reads.files, reads.bytes))
    run.close()
    assert len(steps(tmp_path)) == min(keep, 6)
    assert len(seen) == 1, seen


def test_a_commit_that_shrank_since_it_was_written_counts_for_nothing(tmp_path: Path) -> None:
    run = Committing(tmp_path, [], keep=2)
    for step in (1, 2):
        run.commit(step)
    os.truncate(list_commits(tmp_path)[1].path / "model.bin", 3)
    run.commit(3)
    assert steps(tmp_path) == [1, 2, 3]  # two good ones, and the one in between
    run.close()


def test_commits_of_an_earlier_process_are_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = Committing(tmp_path, [], keep=5)
    for step in (1, 2, 3):
        run.commit(step)
    run.close()
    hashed = []
    hash_file = store_module.hash_file
    monkeypatch.setattr(store_module, "hash_file", lambda path: (hashed.append(path), hash_file(path))[1])
    good: dict[str, int] = {}
    prune(tmp_path, INCARNATION, 2, good=good)
    assert {path.parent.name for path in hashed} == {"step-000002", "step-000003"}
    hashed.clear()
    prune(tmp_path, INCARNATION, 2, good=good)
    assert not hashed


def test_a_driver_that_may_not_write_removes_nothing(tmp_path: Path) -> None:
    may = True
    run = Committing(tmp_path, [], allowed=lambda: may)
    run.commit(1)
    may = False  # its lease is another's now, who may be reading what is there
    run.commit(2)
    assert steps(tmp_path) == [1, 2]
    run.close()


def test_a_commit_that_ends_with_the_run_takes_no_others_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A rollback names a commit; one that becomes durable afterwards must not remove it."""
    run = Committing(tmp_path, [], asynchronous=True)
    run.commit(1)
    run.commits.wait()
    closing = threading.Event()
    commit = store_module.CommitWriter.commit

    def late(*args: Any) -> Any:
        assert closing.wait(60)
        return commit(*args)

    monkeypatch.setattr(store_module.CommitWriter, "commit", late)
    run.commit(2)
    wait = background.BackgroundCommit.wait

    def waited_for(*args: Any) -> Any:
        closing.set()
        return wait(*args)

    monkeypatch.setattr(background.BackgroundCommit, "wait", waited_for)
    run.close()
    assert steps(tmp_path) == [1, 2]


def test_a_commit_under_way_is_settled_and_its_failure_is_no_failure_of_the_rollback(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    run = Committing(tmp_path, [], asynchronous=True)
    run.commit(1)
    run.commits.settle()
    assert steps(tmp_path) == [1]

    def full(*args: Any) -> Any:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(store_module.CommitWriter, "commit", full)
    run.commit(2)
    run.commits.settle()
    assert "No space left on device" in caplog.text
    shutil.rmtree(tmp_path / "attempts")
    run.close()
