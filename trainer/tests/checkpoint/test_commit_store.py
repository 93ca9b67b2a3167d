"""Commits: whole or not there, whatever is killed, torn or flipped, and whenever."""

import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rljob_trainer.checkpoint import (
    CommitError,
    CommitWriter,
    find_commit,
    latest_commit,
    list_commits,
    prune,
    verify,
)
from rljob_trainer.checkpoint import store as store_module
from rljob_trainer.checkpoint.files import FileEntry, write_json_atomic

FIRST, SECOND = "0001-aaaaaaaa", "0002-bbbbbbbb"


def write(job_dir: Path, incarnation: str, step: int, content: bytes = b"weights") -> Any:
    with CommitWriter(job_dir, incarnation, step=step, policy_version=step // 10) as writer:
        (writer.directory / "model.bin").write_bytes(content * 50)
        (writer.directory / "sub").mkdir()
        (writer.directory / "sub" / "more.bin").write_bytes(content)
        return writer.commit({"step": step, "cursor": [1, 2]}, {"kind": "RLJob"})


def test_a_commit_is_found_with_what_was_put_in(tmp_path: Path) -> None:
    commit = write(tmp_path, FIRST, 123)
    assert commit.name == "0001-aaaaaaaa/commits/step-000123"
    latest = latest_commit(tmp_path)
    assert latest.commit == commit
    assert latest.skipped == []
    assert commit.loop_state() == {"step": 123, "cursor": [1, 2]}
    manifest = commit.manifest()
    assert (manifest["step"], manifest["policyVersion"], manifest["incarnation"]) == (123, 12, FIRST)
    assert [entry["path"] for entry in manifest["files"]] == [
        "config.json",
        "loop_state.json",
        "model.bin",
        "sub/more.bin",
    ]
    assert find_commit(tmp_path, commit.name) == commit
    assert find_commit(tmp_path, f"{SECOND}/commits/step-000123") is None


def test_an_empty_job_has_no_commit(tmp_path: Path) -> None:
    assert latest_commit(tmp_path).commit is None
    assert latest_commit(tmp_path / "nowhere").commit is None


def test_a_later_attempt_beats_higher_steps_of_an_earlier_one(tmp_path: Path) -> None:
    write(tmp_path, FIRST, 100)
    write(tmp_path, SECOND, 90)
    write(tmp_path, "0010-cccccccc", 80)
    assert [commit.step for commit in list_commits(tmp_path)] == [100, 90, 80]
    latest = latest_commit(tmp_path).commit
    assert latest is not None
    assert latest.incarnation == "0010-cccccccc"


def test_a_second_commit_of_a_step_does_not_touch_the_first(tmp_path: Path) -> None:
    first, second = write(tmp_path, FIRST, 5), write(tmp_path, FIRST, 5, b"other")
    assert second.path.name == "step-000005-2"
    assert verify(first) is None
    assert latest_commit(tmp_path).commit == second


def test_steps_beyond_six_digits_keep_their_order(tmp_path: Path) -> None:
    write(tmp_path, FIRST, 1_000_000)
    write(tmp_path, FIRST, 999_999)
    latest = latest_commit(tmp_path).commit
    assert latest is not None
    assert latest.step == 1_000_000


DAMAGE: dict[str, tuple[Callable[[Path], object], str]] = {
    "no manifest": (lambda path: (path / "manifest.json").unlink(), "manifest.json is missing"),
    "manifest cut short": (
        lambda path: (path / "manifest.json").write_bytes((path / "manifest.json").read_bytes()[:-30]),
        "manifest.json is damaged",
    ),
    "manifest of zeros": (lambda path: (path / "manifest.json").write_bytes(b"\0" * 300), "manifest.json is damaged"),
    "manifest that is no object": (lambda path: (path / "manifest.json").write_text("[]"), "manifest.json is damaged"),
    "file missing": (lambda path: (path / "model.bin").unlink(), "model.bin is missing"),
    "file cut short": (lambda path: os.truncate(path / "model.bin", 10), "model.bin has 10 bytes, 350 were written"),
    "file empty": (lambda path: os.truncate(path / "sub/more.bin", 0), "sub/more.bin has 0 bytes"),
    "one bit flipped": (
        lambda path: (path / "model.bin").write_bytes(bytes([(path / "model.bin").read_bytes()[0] ^ 1])
                                                      + (path / "model.bin").read_bytes()[1:]),
        "SHA-256 differs",
    ),
    "loop state changed": (lambda path: (path / "loop_state.json").write_text("{}"), "loop_state.json has 2 bytes"),
    "another step's manifest": (
        lambda path: (path / "manifest.json").write_text(
            (path / "manifest.json").read_text().replace('"step": 20', '"step": 21')
        ),
        "manifest is that of step 21",
    ),
    "newer format": (
        lambda path: (path / "manifest.json").write_text(
            (path / "manifest.json").read_text().replace('"format": 1', '"format": 9')
        ),
        "format is 9",
    ),
}  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE.keys())
def test_a_damaged_commit_is_skipped_loudly(
    tmp_path: Path, damage: tuple[Callable[[Path], object], str], caplog: pytest.LogCaptureFixture
) -> None:
    good, bad = write(tmp_path, FIRST, 10), write(tmp_path, FIRST, 20)
    damage[0](bad.path)
    latest = latest_commit(tmp_path)
    assert latest.commit == good
    assert [skipped.name for skipped in latest.skipped] == [bad.name]
    assert damage[1] in latest.skipped[0].reason
    assert bad.name in caplog.text


FILES = ["model.bin", "sub/more.bin", "loop_state.json", "config.json"]
HURT: dict[str, Callable[[Path], object]] = {
    "flipped": lambda path: path.write_bytes(
        bytes([path.read_bytes()[0], path.read_bytes()[1] ^ 4]) + path.read_bytes()[2:]
    ),
    "cut short": lambda path: os.truncate(path, path.stat().st_size // 2),
    "deleted": lambda path: path.unlink(),
    "empty": lambda path: os.truncate(path, 0),
}


@pytest.mark.parametrize("hurt", HURT.values(), ids=HURT.keys())
@pytest.mark.parametrize("name", [*FILES, "manifest.json"])
def test_whatever_file_is_hurt_the_commit_before_is_used(
    tmp_path: Path, name: str, hurt: Callable[[Path], object], caplog: pytest.LogCaptureFixture
) -> None:
    good, bad = write(tmp_path, FIRST, 10), write(tmp_path, FIRST, 20)
    hurt(bad.path / name)
    latest = latest_commit(tmp_path)
    assert latest.commit == good
    assert name in latest.skipped[0].reason
    assert f"commit {bad.name} is skipped" in caplog.text
    assert prune(tmp_path, FIRST, keep=1) == []  # the last good one stays, however many are newer


@given(data=st.data())
def test_any_flipped_bit_is_found(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    job_dir = tmp_path_factory.mktemp("job")
    commit = write(job_dir, FIRST, 1)
    path = commit.path / data.draw(st.sampled_from([*FILES, "manifest.json"]))
    content = bytearray(path.read_bytes())
    at = data.draw(st.integers(0, len(content) * 8 - 1))
    content[at // 8] ^= 1 << (at % 8)
    path.write_bytes(bytes(content))
    assert verify(commit) is not None


class Killed(BaseException):
    """Stands for SIGKILL: nothing of the process runs afterwards."""


def steps_of(monkeypatch: pytest.MonkeyPatch, kill_at: int) -> Iterator[int]:
    """Count every call that changes the disk within a commit or a pruning; the `kill_at`-th never happens."""
    count = 0

    def guard(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            nonlocal count
            count += 1
            if count == kill_at:
                raise Killed
            return function(*args, **kwargs)

        return call

    rmtree = shutil.rmtree

    def torn_rmtree(path: Any, ignore_errors: bool = False) -> None:
        """Removes the manifest last: the worst order for a kill in between."""
        if kill_at and count >= kill_at:
            return  # a killed process cleans nothing up
        for name in sorted(os.listdir(path)):
            inner = Path(path) / name
            guard(rmtree if inner.is_dir() else os.unlink)(inner)
        guard(os.rmdir)(path)

    for name in ("write_json", "fsync_file", "fsync_dir", "hash_file"):
        monkeypatch.setattr(store_module, name, guard(getattr(store_module, name)))
    monkeypatch.setattr(store_module.os, "rename", guard(os.rename))
    monkeypatch.setattr(store_module.shutil, "rmtree", torn_rmtree)
    yield from iter(lambda: count, None)  # type: ignore[arg-type]


def test_killed_at_any_write_there_is_always_a_good_latest_commit(tmp_path: Path) -> None:
    """Every step of committing step 30 and pruning to one is in turn the last thing that happens."""
    finished, kill_at = False, 0
    outcomes = set()
    while not finished:
        kill_at += 1
        job_dir = tmp_path / str(kill_at)
        write(job_dir, FIRST, 10)
        write(job_dir, SECOND, 20)
        with pytest.MonkeyPatch.context() as patch:
            counter = steps_of(patch, kill_at)
            next(counter)
            try:
                write(job_dir, SECOND, 30)
                prune(job_dir, SECOND, 1)
                finished = True
            except Killed:
                pass
        latest = latest_commit(job_dir)
        assert latest.commit is not None, kill_at
        assert latest.skipped == [], (kill_at, latest.skipped)
        assert latest.commit.step in (20, 30)
        assert latest.commit.loop_state()["step"] == latest.commit.step
        outcomes.add(latest.commit.step)
        # The next attempt carries on over what was left lying around.
        write(job_dir, SECOND, 40)
        prune(job_dir, SECOND, 1)
        assert [commit.step for commit in list_commits(job_dir)] == [10, 40]
        left = {path.name for path in (job_dir / "attempts" / SECOND / "commits").iterdir()}
        assert {name for name in left if name.startswith(".trash")} == set()
    assert outcomes == {20, 30}
    assert kill_at > 15


def test_pruning_keeps_the_newest_good_ones_of_its_own_incarnation(tmp_path: Path) -> None:
    for step in (1, 2, 3):
        write(tmp_path, FIRST, step)
    commits = [write(tmp_path, SECOND, step) for step in (10, 20, 30, 40)]
    os.truncate(commits[3].path / "model.bin", 1)
    assert prune(tmp_path, SECOND, 2) == [commits[0].name]
    assert [commit.step for commit in list_commits(tmp_path)] == [1, 2, 3, 20, 30, 40]


def test_pruning_never_removes_the_last_good_one(tmp_path: Path) -> None:
    commits = [write(tmp_path, FIRST, step) for step in (10, 20, 30)]
    for commit in commits[1:]:
        (commit.path / "manifest.json").unlink()
    assert prune(tmp_path, FIRST, 1) == []
    assert latest_commit(tmp_path).commit == commits[0]
    with pytest.raises(ValueError, match="at least 1"):
        prune(tmp_path, FIRST, 0)


def test_leaving_without_commit_leaves_nothing(tmp_path: Path) -> None:
    def fail_while_writing() -> None:
        with CommitWriter(tmp_path, FIRST, step=1, policy_version=0) as writer:
            (writer.directory / "model.bin").write_bytes(b"x")
            raise KeyError

    with pytest.raises(KeyError):
        fail_while_writing()
    assert list((tmp_path / "attempts" / FIRST / "commits").iterdir()) == []


@pytest.mark.parametrize(("content", "problem"), [(None, r"not there: rank\.bin"), (b"xy", "2 bytes, .* reported 3")])
def test_what_ranks_report_must_be_there(tmp_path: Path, content: bytes | None, problem: str) -> None:
    with CommitWriter(tmp_path, FIRST, step=1, policy_version=0) as writer:
        if content is not None:
            (writer.directory / "rank.bin").write_bytes(content)
        writer.add([FileEntry("rank.bin", 3, "00")])
        with pytest.raises(CommitError, match=problem):
            writer.commit({})
    assert latest_commit(tmp_path).commit is None


def test_an_incarnation_must_have_its_form(tmp_path: Path) -> None:
    with pytest.raises(CommitError, match="incarnation"):
        CommitWriter(tmp_path, "../elsewhere", step=1, policy_version=0)


def test_atomic_json(tmp_path: Path) -> None:
    path = tmp_path / "summary.json"
    write_json_atomic(path, {"a": 1})
    write_json_atomic(path, {"a": 2})
    assert json.loads(path.read_text()) == {"a": 2}
    assert [entry.name for entry in tmp_path.iterdir()] == ["summary.json"]
