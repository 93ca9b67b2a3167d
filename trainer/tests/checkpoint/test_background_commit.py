"""Commits that are written while training goes on."""

import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from rljob_trainer.checkpoint import Commit, CommitError, CommitWriter, latest_commit, verify
from rljob_trainer.checkpoint.background import BackgroundCommit, ShardWriter, mark_written
from rljob_trainer.checkpoint.files import FileEntry, hash_file

INCARNATION = "0001-aaaaaaaa"


def shard(directory: Path, rank: int, gate: threading.Event | None = None) -> Callable[[], list[FileEntry]]:
    def write() -> list[FileEntry]:
        if gate is not None:
            assert gate.wait(30)
        path = directory / f"rank-{rank}.bin"
        path.write_bytes(bytes([rank]) * 10)
        return [FileEntry(path.name, 10, hash_file(path))]

    return write


def begin(job_dir: Path, ranks: int, limit: float = 30.0, allowed: bool = True) -> tuple[BackgroundCommit, Path]:
    writer = CommitWriter(job_dir, INCARNATION, step=3, policy_version=1)
    writer.begin()

    def publish(done: CommitWriter) -> Commit:
        return done.commit({"step": 3})

    return BackgroundCommit(writer, ranks, publish, limit=limit, allowed=lambda: allowed), writer.directory


def test_the_commit_is_there_once_all_ranks_wrote(tmp_path: Path) -> None:
    under_way, directory = begin(tmp_path, ranks=2)
    gate = threading.Event()
    writers = [ShardWriter(0), ShardWriter(1)]
    writers[0].start(directory, shard(directory, 0), 30)
    writers[1].start(directory, shard(directory, 1, gate), 30)
    writers[0].wait(30)
    assert not under_way.done
    assert latest_commit(tmp_path).commit is None
    gate.set()
    commit = under_way.wait(30)
    assert verify(commit) is None
    assert latest_commit(tmp_path).commit == commit
    assert [entry["path"] for entry in commit.manifest()["files"]] == ["loop_state.json", "rank-0.bin", "rank-1.bin"]
    assert {path.name for path in commit.path.iterdir()} == {
        "loop_state.json",
        "manifest.json",
        "rank-0.bin",
        "rank-1.bin",
    }


def test_a_rank_that_cannot_write_is_told_and_leaves_nothing(tmp_path: Path) -> None:
    under_way, directory = begin(tmp_path, ranks=2)

    def full() -> list[FileEntry]:
        raise OSError(28, "No space left on device")

    mark_written(directory, 0, [])
    ShardWriter(1).start(directory, full, 30)
    with pytest.raises(CommitError, match=r"commit of step 3 was not written: rank 1: OSError: .*No space left"):
        under_way.wait(30)
    assert list(directory.parent.iterdir()) == []


def test_a_rank_that_never_answers_costs_a_limited_time(tmp_path: Path) -> None:
    under_way, directory = begin(tmp_path, ranks=1, limit=0.2)
    with pytest.raises(CommitError, match="rank 0 did not write its state within 0 s"):
        under_way.wait(30)
    assert not directory.exists()
    waiting, _ = begin(tmp_path, ranks=1)
    with pytest.raises(CommitError, match="was not written within 0 s"):
        waiting.wait(0.1)


def test_a_driver_that_lost_its_lease_publishes_nothing(tmp_path: Path) -> None:
    under_way, directory = begin(tmp_path, ranks=1, allowed=False)
    mark_written(directory, 0, [])
    with pytest.raises(CommitError, match="may not commit any more"):
        under_way.wait(30)
    assert latest_commit(tmp_path).commit is None


def test_a_rank_writes_one_thing_at_a_time(tmp_path: Path) -> None:
    gate, writer = threading.Event(), ShardWriter(0)
    writer.start(tmp_path, shard(tmp_path, 0, gate), 30)
    with pytest.raises(CommitError, match="rank 0 did not finish"):
        writer.start(tmp_path, shard(tmp_path, 0), 0.1)
    gate.set()
    writer.wait(30)
