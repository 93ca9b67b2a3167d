"""Files and folders that appear whole or not at all: written beside their place, brought to the disk, renamed.

What is renamed survives the end of the process. With `fsync`, it is never found torn after a crash of the machine; with
`fsync_folder` too, it is there once the call has returned.
"""

import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def fsync_file(path: Path) -> None:
    """Wait until the file's content is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def fsync_dir(path: Path) -> None:
    """Wait until the folder's entries (new names, renames) are on the disk."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_file(path: Path, content: bytes | str, *, fsync: bool = True, fsync_folder: bool = False) -> None:
    """Write a file so that a reader, or a crash, sees the old content or the new. Text is UTF-8."""
    with replaced_file(path, fsync=fsync, fsync_folder=fsync_folder) as temporary:
        temporary.write_bytes(content.encode() if isinstance(content, str) else content)


@contextmanager
def replaced_file(path: Path, *, fsync: bool = True, fsync_folder: bool = False) -> Iterator[Path]:
    """An empty file beside `path`, to be written to; it takes the place of `path` at the end of the block.

    When the block raises, `path` stays as it was and nothing is left. Several processes may write at once: the last
    one's content stays.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    temporary.touch(exist_ok=False)
    try:
        yield temporary
        if fsync:
            fsync_file(temporary)
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    if fsync_folder:
        fsync_dir(path.parent)


@contextmanager
def replaced_folder(path: Path, *, fsync: bool = False) -> Iterator[Path]:
    """The name of a folder beside `path`, to be made and filled; it takes the place of `path` at the end of the block.

    When the block raises, `path` stays as it was and nothing is left; what a killed process left is removed first, and
    the old folder put back where that process had moved it away. For one process at a time. `fsync`: all files and
    folders are brought to the disk before, and the new name after.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh, old = path.with_name(f".{path.name}.new"), path.with_name(f".{path.name}.old")
    if old.exists() and not path.exists():
        os.rename(old, path)
    for leftover in (fresh, old):
        _remove(leftover)
    try:
        yield fresh
        if fsync:
            for entry in (fresh, *fresh.rglob("*")):
                (fsync_dir if entry.is_dir() else fsync_file)(entry)
        if path.exists():
            os.rename(path, old)
        try:
            os.rename(fresh, path)
        except OSError:
            if old.exists():
                os.rename(old, path)
            raise
    except BaseException:
        shutil.rmtree(fresh, ignore_errors=True)
        raise
    if fsync:
        fsync_dir(path.parent)
    _remove(old, ignore_errors=True)  # the new one is there; the next call removes what is left, or says why not


def _remove(path: Path, *, ignore_errors: bool = False) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=ignore_errors)
    else:
        path.unlink(missing_ok=True)
