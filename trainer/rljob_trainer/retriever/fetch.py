"""A ready-made index and corpus, from the parts that they are published in: for `spec.data.prepare`.

    prepare:
      function: rljob_trainer.retriever.fetch:fetch
      args:
        index: wiki-18/e5_Flat.index
        indexParts: [hf://owner/wiki-18-e5-index/part_aa, hf://owner/wiki-18-e5-index/part_ab]
        corpus: wiki-18/wiki-18.jsonl
        corpusArchive: hf://owner/wiki-18-corpus/wiki-18.jsonl.gz

Parts are files of data sets on the Hub (`hf://owner/name[@revision]/file`), or paths. What is there is not made again;
a pod that is lost goes on after the last part that was joined, and within a download where huggingface_hub left it.
"""

import gzip
import json
import logging
import os
import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

from rljob_api.errors import UserError
from rljob_api.v1alpha1.hub_path import PREFIX
from rljob_api.v1alpha1.retriever import RETRIEVER_DIR

from rljob_trainer.atomic_files import fsync_file, write_file
from rljob_trainer.cluster.preparation import report
from rljob_trainer.job_paths import existing_file, resolve

log = logging.getLogger(__name__)

_FIELD = "spec.data.prepare.args"
_CHUNK = 16 << 20
_FILE = re.compile(
    r"hf://(?P<repo>[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)(@(?P<revision>[\w.-]+))?/(?P<file>\w[\w./-]*)"
)
_DOWNLOADS = ".downloads"


def fetch(
    folder: str,
    *,
    index: str | None = None,
    indexParts: Sequence[str] = (),
    corpus: str | None = None,
    corpusArchive: str | None = None,
) -> None:
    """Join the parts into `index`, unpack `corpusArchive` (`.gz`, or plain) into `corpus`. Raises UserError."""
    if bool(index) != bool(indexParts) or bool(corpus) != bool(corpusArchive) or not (index or corpus):
        raise UserError(f"{_FIELD}: give index and indexParts, corpus and corpusArchive, or all four")
    targets: list[Path] = []
    if index:
        targets.append(_target(index, folder, "index"))
        join(indexParts, targets[-1], folder)
    if corpus and corpusArchive:
        targets.append(_target(corpus, folder, "corpus"))
        unpack(corpusArchive, targets[-1], folder)
    for target in targets:
        shutil.rmtree(target.parent / _DOWNLOADS, ignore_errors=True)


def join(parts: Sequence[str], target: Path, folder: str) -> None:
    """The parts one after the other in `target`. Each is removed, if it was downloaded, once it is in."""
    if target.is_file():
        return
    joining, state = target.with_name(f".{target.name}.joining"), target.with_name(f".{target.name}.joined")
    done, size = _state(state, parts)
    with joining.open("r+b" if joining.is_file() else "w+b") as file:
        file.truncate(size)
        file.seek(size)
        for number, part in enumerate(parts[done:], start=done + 1):
            source, ours = _local(part, folder, "indexParts", target)
            stage, total = f"index, part {number} of {len(parts)}", source.stat().st_size
            with source.open("rb") as content:
                _copy(content, file, stage, content, total)
            file.flush()
            fsync_file(joining)
            write_file(state, json.dumps({"parts": list(parts[:number]), "size": file.tell()}).encode())
            if ours:
                source.unlink()
    os.replace(joining, target)
    state.unlink(missing_ok=True)
    log.info("joined %d parts: %s", len(parts), target)


def unpack(archive: str, target: Path, folder: str) -> None:
    """The content of a `.gz` file (of any other: the file) as `target`."""
    if target.is_file():
        return
    source, ours = _local(archive, folder, "corpusArchive", target)
    unpacking = target.with_name(f".{target.name}.unpacking")
    try:
        with source.open("rb") as packed, unpacking.open("wb") as file:
            content = gzip.GzipFile(fileobj=packed) if source.name.endswith(".gz") else packed
            _copy(content, file, "corpus", packed, source.stat().st_size)
        fsync_file(unpacking)
    except (gzip.BadGzipFile, EOFError) as error:
        raise UserError(f"{_FIELD}.corpusArchive: {archive} is no whole gzip file: {error}") from None
    os.replace(unpacking, target)
    if ours:
        source.unlink()
    log.info("unpacked: %s", target)


def _target(path: str, folder: str, name: str) -> Path:
    target = resolve(path, folder, f"{_FIELD}.{name}")
    if not any(target.is_relative_to(Path(root).resolve()) for root in (folder, RETRIEVER_DIR)):
        raise UserError(
            f"{_FIELD}.{name}: {path} is outside the job's directory",
            hint=f"give a relative path, or one below {RETRIEVER_DIR} with spec.retriever.storage",
        )
    target.parent.mkdir(parents=True, exist_ok=True)
    return target


def _state(state: Path, parts: Sequence[str]) -> tuple[int, int]:
    """Parts that are in, and bytes that they make; nothing when others were joined before."""
    try:
        found = json.loads(state.read_text(encoding="utf-8"))
        done, size = list(found["parts"]), int(found["size"])
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return 0, 0
    return (len(done), size) if list(parts[: len(done)]) == done else (0, 0)


def _local(part: str, folder: str, name: str, target: Path) -> tuple[Path, bool]:
    """The file, and whether it was downloaded for this: beside the target, where there must be room for it anyway."""
    if not part.startswith(PREFIX):
        return existing_file(part, folder, f"{_FIELD}.{name}"), False
    wanted = _FILE.fullmatch(part)
    if wanted is None or ".." in wanted["file"].split("/"):
        raise UserError(f"{_FIELD}.{name}: {part} is not of the form hf://owner/name[@revision]/file")
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, RepositoryNotFoundError, RevisionNotFoundError

    report(f"download of {Path(wanted['file']).name}")
    try:
        path = hf_hub_download(
            wanted["repo"],
            wanted["file"],
            repo_type="dataset",
            revision=wanted["revision"],
            local_dir=target.parent / _DOWNLOADS,
        )
    except (EntryNotFoundError, RepositoryNotFoundError, RevisionNotFoundError) as error:
        raise UserError(
            f"{_FIELD}.{name}: {part}: there is no such file, or it is private ({type(error).__name__})",
            hint="check the name; a private one needs model.source.token",
        ) from None
    return Path(path), True


def _copy(content: BinaryIO | gzip.GzipFile, file: BinaryIO, stage: str, position: BinaryIO, total: int) -> None:
    while chunk := content.read(_CHUNK):
        file.write(chunk)
        report(stage, position.tell(), total)
