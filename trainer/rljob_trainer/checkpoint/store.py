"""Commits of a job: directories that are whole or not there, found again after any crash.

    <job_dir>/attempts/<incarnation>/commits/step-000123/
        …files of the ranks…, loop_state.json, manifest.json

A commit is written into a hidden folder beside its place: files, fsync, `loop_state.json`, then `manifest.json` with
every file's size and SHA-256 and a checksum of its own, fsync, rename, fsync of the parent. A folder without a
manifest, or with files that do not match it, is no commit.
"""

import hashlib
import json
import logging
import os
import re
import shutil
import time
from collections.abc import Collection, Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from rljob_trainer.atomic_files import fsync_dir, fsync_file
from rljob_trainer.checkpoint.files import FileEntry, hash_file, write_json

log = logging.getLogger(__name__)

FORMAT = 1
MANIFEST = "manifest.json"
LOOP_STATE = "loop_state.json"
CHECKSUM = "checksum"
INCARNATION = re.compile(r"^(\d{4,})-[0-9a-z]+$")
COMMIT_NAME = re.compile(r"^step-(\d{6,})(?:-(\d+))?$")
TEMPORARY, TRASH = ".tmp-", ".trash-"


def checksum(manifest: Mapping[str, Any]) -> str:
    """SHA-256 of a manifest without its checksum: of the other files it holds theirs."""
    text = json.dumps(manifest, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


class CommitError(RuntimeError):
    """A commit could not be written, or is not what its manifest says."""


@dataclass(frozen=True)
class Commit:
    """A directory that has the name of a commit. Only `verify` says whether it is a good one."""

    path: Path
    incarnation: str
    step: int
    serial: int
    """Distinguishes commits of one step in one incarnation."""

    @property
    def name(self) -> str:
        """The commit's name within the job: `<incarnation>/commits/<folder>`."""
        return f"{self.incarnation}/commits/{self.path.name}"

    @property
    def order(self) -> tuple[int, int, int, str]:
        """Newest last. A later attempt's commit beats any earlier attempt's, whatever their steps: an earlier attempt
        that still writes (it lost its lease and has not noticed) must not be resumed from."""
        match = INCARNATION.match(self.incarnation)
        return (int(match[1]) if match else 0, self.step, self.serial, self.incarnation)

    def manifest(self) -> dict[str, Any]:
        """The manifest: format, step, policyVersion, incarnation, time, files, checksum."""
        value: dict[str, Any] = json.loads((self.path / MANIFEST).read_text(encoding="utf-8"))
        return value

    def loop_state(self) -> dict[str, Any]:
        """What the loop put beside the weights."""
        value: dict[str, Any] = json.loads((self.path / LOOP_STATE).read_text(encoding="utf-8"))
        return value


@dataclass(frozen=True)
class SkippedCommit:
    """A commit that cannot be used, and why."""

    name: str
    reason: str


@dataclass(frozen=True)
class LatestCommit:
    """The newest good commit, if there is one, and the newer ones that had to be skipped."""

    commit: Commit | None
    skipped: list[SkippedCommit]


def commits_dir(job_dir: str | Path, incarnation: str) -> Path:
    """Where an incarnation writes its commits."""
    return Path(job_dir) / "attempts" / incarnation / "commits"


def list_commits(job_dir: str | Path, incarnation: str = "*") -> list[Commit]:
    """All directories with a commit's name, of one or of all incarnations, oldest first. They are not verified."""
    found = []
    for path in Path(job_dir).glob(f"attempts/{incarnation}/commits/step-*"):
        match = COMMIT_NAME.match(path.name)
        if match and path.is_dir() and INCARNATION.match(path.parent.parent.name):
            found.append(Commit(path, path.parent.parent.name, int(match[1]), int(match[2] or 1)))
    return sorted(found, key=lambda commit: commit.order)


def find_commit(job_dir: str | Path, name: str) -> Commit | None:
    """The commit `<incarnation>/commits/<folder>`, or None when there is no such directory. Not verified."""
    return next((commit for commit in list_commits(job_dir) if commit.name == name), None)


def verify(commit: Commit) -> str | None:
    """None when the commit is whole, else what is wrong: no manifest, a file that is missing, cut short or changed."""
    try:
        manifest = commit.manifest()
        files = [FileEntry(**entry) for entry in manifest["files"]]
        if manifest["format"] != FORMAT:
            return f"its format is {manifest['format']}; this version reads {FORMAT}"
        if (manifest["step"], manifest["incarnation"]) != (commit.step, commit.incarnation):
            return f"its manifest is that of step {manifest['step']} of {manifest['incarnation']}"
        if manifest.pop(CHECKSUM) != checksum(manifest):
            return f"{MANIFEST} is not what was written (its checksum differs)"
    except FileNotFoundError:
        return f"{MANIFEST} is missing"
    except OSError as error:
        return f"{MANIFEST} cannot be read: {error}"
    except (ValueError, KeyError, TypeError) as error:
        return f"{MANIFEST} is damaged: {type(error).__name__}: {error}"
    if LOOP_STATE not in {entry.path for entry in files}:
        return f"its manifest does not list {LOOP_STATE}"
    for entry in files:
        path = commit.path / entry.path
        try:
            size = path.stat().st_size
            if size != entry.size:
                return f"{entry.path} has {size} bytes, {entry.size} were written"
            if hash_file(path) != entry.sha256:
                return f"{entry.path} is not what was written (SHA-256 differs)"
        except FileNotFoundError:
            return f"{entry.path} is missing"
        except OSError as error:
            return f"{entry.path} cannot be read: {error}"
    return None


def size_of(commit: Commit) -> int:
    """Bytes of all its files; nothing is read."""
    return sum(path.stat().st_size for path in commit.path.rglob("*") if path.is_file())


def latest_commit(job_dir: str | Path) -> LatestCommit:
    """The newest commit that is whole, over all incarnations. Newer ones that are not are logged and returned."""
    skipped: list[SkippedCommit] = []
    for commit in reversed(list_commits(job_dir)):
        reason = verify(commit)
        if reason is None:
            return LatestCommit(commit, skipped)
        log.error("commit %s is skipped: %s", commit.name, reason)
        skipped.append(SkippedCommit(commit.name, reason))
    return LatestCommit(None, skipped)


class CommitWriter:
    """Writes one commit. A context manager: leaving it without `commit()` removes what was written.

    with CommitWriter(job_dir, incarnation, step=123, policy_version=7) as writer:
        entries = …every rank: save(str(writer.directory))…
        writer.add(entries)
        commit = writer.commit(loop_state, config)
    """

    def __init__(self, job_dir: str | Path, incarnation: str, *, step: int, policy_version: int) -> None:
        if not INCARNATION.match(incarnation):
            raise CommitError(f"{incarnation!r} is not the name of an incarnation, <attempt>-<id>")
        self.incarnation, self.step, self.policy_version = incarnation, step, policy_version
        parent = commits_dir(job_dir, incarnation)
        _make_dirs(parent)
        serial, name = 1, f"step-{step:06d}"
        while (parent / name).exists():
            serial += 1
            name = f"step-{step:06d}-{serial}"
        self.target = Commit(parent / name, incarnation, step, serial)
        self.directory = parent / f"{TEMPORARY}{name}"
        """Where the ranks write their files."""
        self._entries: dict[str, FileEntry] = {}
        self._done = False

    def __enter__(self) -> Self:
        self.begin()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.discard()

    def begin(self) -> None:
        """Make the folder for the ranks; for use other than as a context manager."""
        if self.directory.exists():
            shutil.rmtree(self.directory)
        self.directory.mkdir()

    def discard(self) -> None:
        """Remove what was written, unless it became a commit."""
        if not self._done:
            shutil.rmtree(self.directory, ignore_errors=True)

    def add(self, entries: Iterable[FileEntry]) -> None:
        """Files that their writer has made durable and hashed already; all others are by `commit`."""
        self._entries |= {entry.path: entry for entry in entries}

    def commit(self, loop_state: Mapping[str, Any], config: Mapping[str, Any] | None = None) -> Commit:
        """Make everything in `directory` a commit. Once this returns, it survives a crash of the machine."""
        write_json(self.directory / LOOP_STATE, dict(loop_state))
        if config is not None:
            write_json(self.directory / "config.json", dict(config))
        files = []
        folders = {self.directory}
        for path in sorted(self.directory.rglob("*")):
            if path.is_dir():
                folders.add(path)
                continue
            name = path.relative_to(self.directory).as_posix()
            entry = self._entries.pop(name, None)
            if entry is None:
                fsync_file(path)
                entry = FileEntry(name, path.stat().st_size, hash_file(path))
            elif entry.size != path.stat().st_size:
                raise CommitError(f"{name} has {path.stat().st_size} bytes, its writer reported {entry.size}")
            files.append(entry)
        if self._entries:
            raise CommitError(f"files that were reported are not there: {', '.join(sorted(self._entries))}")
        for folder in folders:
            fsync_dir(folder)
        manifest = {
            "format": FORMAT,
            "step": self.step,
            "policyVersion": self.policy_version,
            "incarnation": self.incarnation,
            "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "files": [asdict(entry) for entry in files],
        }
        write_json(self.directory / MANIFEST, manifest | {CHECKSUM: checksum(manifest)})
        fsync_dir(self.directory)
        os.rename(self.directory, self.target.path)
        self._done = True
        fsync_dir(self.target.path.parent)
        return self.target


def prune(
    job_dir: str | Path,
    incarnation: str,
    keep: int,
    *,
    in_use: Collection[str] = (),
    good: dict[str, int] | None = None,
) -> list[str]:
    """Remove commits of this incarnation (never another's) that are older than its newest `keep` good ones.

    Nothing is removed before `keep` good commits are known, so a damaged newest commit can never cost the last good
    one. `good` has the `size_of` commits that this process has written or read before: while it is that, they are not
    read again; those that are found good are added. A commit is renamed away before it is deleted: a crash in between
    leaves no half of one. `in_use` names commits that somebody needs, kept until a later call. What cannot be removed
    is logged and tried again by a later call. Returns the names that were removed.
    """
    if keep < 1:
        raise ValueError(f"keep must be at least 1, is {keep}")
    known = {} if good is None else good
    parent = commits_dir(job_dir, incarnation)
    count, remove = 0, []
    for commit in reversed(list_commits(job_dir, incarnation)):
        if count >= keep:
            if commit.name not in in_use:
                remove.append(commit)
        elif known.get(commit.name) == (size := size_of(commit)) or verify(commit) is None:
            known[commit.name] = size
            count += 1
    _empty_trash(parent)
    removed = [commit.name for commit in reversed(remove) if _throw_away(commit)]
    for name in removed:
        known.pop(name, None)
    if removed:
        fsync_dir(parent)
    _empty_trash(parent)
    return removed


def _throw_away(commit: Commit) -> bool:
    try:
        os.rename(commit.path, commit.path.with_name(f"{TRASH}{commit.path.name}"))
    except OSError as error:
        log.warning("the old commit %s stays, it cannot be removed: %s", commit.name, error)
        return False
    return True


def _empty_trash(parent: Path) -> None:
    for leftover in parent.glob(f"{TRASH}*"):
        try:
            shutil.rmtree(leftover)
        except OSError as error:
            log.warning("what is left of an old commit cannot be removed: %s", error)


def _make_dirs(path: Path) -> None:
    """Make a folder and its parents so that their names are durable too."""
    missing = [parent for parent in (path, *path.parents) if not parent.exists()]
    path.mkdir(parents=True, exist_ok=True)
    for folder in missing:
        fsync_dir(folder.parent)
