"""Build the index of a corpus: `python -m rljob_trainer.retriever.build --job F --dir DIR`. Does nothing when built."""

import argparse
import logging
import sys
import time
from array import array
from collections.abc import Iterator
from itertools import batched
from pathlib import Path
from typing import IO

import numpy as np
from rljob_api.contract.job_document import load_document
from rljob_api.errors import UserError
from rljob_api.v1alpha1.retriever import RetrieverSpec

from rljob_trainer import logs
from rljob_trainer.atomic_files import replaced_file, write_file
from rljob_trainer.cluster.preparation import report
from rljob_trainer.file_lock import exclusive
from rljob_trainer.job_paths import existing_file, resolve
from rljob_trainer.retriever.corpus import Document, corpus_fingerprint, read_passages
from rljob_trainer.retriever.encoder import Encoder, load_encoder
from rljob_trainer.retriever.index import (
    IndexManifest,
    check_encoder,
    is_current,
    manifest_path,
    offsets_path,
    probe_vector,
    read_manifest,
)

log = logging.getLogger(__name__)

_BATCH = 1024
_REPORT_SECONDS = 10.0
_LOCK_SECONDS = 24 * 3600.0
"""A corpus of tens of millions of passages takes hours; a dead builder's lock is freed by the kernel."""


def build_index(spec: RetrieverSpec, job_dir: str) -> Path:
    """The job's index, built unless it is there. Two processes may call this at once: one builds, the other waits.

    Raises UserError when the index is missing and may not be built, or is another encoder's.
    """
    corpus = existing_file(spec.corpus, job_dir, "spec.retriever.corpus")
    index = resolve(spec.index.path, job_dir, "spec.retriever.index.path")
    if spec.index.build == "Never" or (index.is_file() and read_manifest(index) is None):
        return existing_file(spec.index.path, job_dir, "spec.retriever.index.path")
    encoder = load_encoder(spec.encoder, job_dir)
    if _built(index, corpus, encoder):  # also where the folder is mounted read-only
        return index
    try:
        index.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"spec.retriever.index.path: {index.parent} cannot be made: {error.strerror}") from None
    with exclusive(index.with_name(index.name + ".lock"), _LOCK_SECONDS):
        if _built(index, corpus, encoder):
            return index
        if index.is_file():
            log.warning("%s was built from another corpus than %s: building it again", index, corpus)
        _build(corpus, index, encoder)
    return index


def _built(index: Path, corpus: Path, encoder: Encoder) -> bool:
    """Whether the index is there and of this corpus. Raises UserError when it is another encoder's."""
    manifest = read_manifest(index)
    if manifest is None or not index.is_file():
        return False
    check_encoder(index, manifest, encoder)
    return is_current(index, manifest, corpus)


def _build(corpus: Path, index: Path, encoder: Encoder) -> None:
    """Stream the corpus through the encoder into the index file; memory holds one batch."""
    started = time.monotonic()
    fingerprint = corpus_fingerprint(corpus)
    offsets = array("q")
    manifest_path(index).unlink(missing_ok=True)
    with replaced_file(index) as temporary:
        with temporary.open("wb") as file:
            write_header(file, 0, encoder.dimension)
            for batch in batched(_with_progress(corpus), _BATCH):
                offsets.extend(offset for offset, _ in batch)
                file.write(encoder.encode_passages([document["contents"] for _, document in batch]).tobytes())
            file.seek(0)
            write_header(file, len(offsets), encoder.dimension)
        if not offsets:
            raise UserError(f"spec.retriever.corpus: {corpus} has no passages")
    _write_offsets(offsets_path(index), offsets)
    if corpus_fingerprint(corpus) != fingerprint:
        raise UserError(f"spec.retriever.corpus: {corpus} changed while its index was built")
    probe = [round(float(value), 6) for value in probe_vector(encoder)]
    manifest = IndexManifest(encoder.fingerprint, encoder.dimension, len(offsets), fingerprint, probe)
    write_file(manifest_path(index), manifest.write_bytes())
    log.info("indexed %d passages in %.1f s: %s", len(offsets), time.monotonic() - started, index)


def write_header(file: IO[bytes], passages: int, dimension: int) -> None:
    """faiss' own header of an IndexFlatIP, with the numbers of vectors (bytes 8–16) and floats (last 8) put in.

    faiss writes an index from memory only; with its header, vectors can be streamed to the file.
    """
    import faiss

    header = bytearray(faiss.serialize_index(faiss.IndexFlatIP(dimension)).tobytes())
    if header[:4] != b"IxFI" or int.from_bytes(header[8:16], "little") != 0:
        raise RuntimeError(f"faiss {faiss.__version__} writes Flat indexes in a format that this version does not know")
    header[8:16] = passages.to_bytes(8, "little")
    header[-8:] = (passages * dimension).to_bytes(8, "little")
    file.write(header)


def _write_offsets(path: Path, offsets: "array[int]") -> None:
    with replaced_file(path) as temporary, temporary.open("wb") as file:
        np.save(file, np.frombuffer(offsets, dtype=np.int64))


def _with_progress(corpus: Path) -> Iterator[tuple[int, Document]]:
    size = corpus.stat().st_size
    started = reported = time.monotonic()
    for number, (offset, document) in enumerate(read_passages(corpus)):
        now = time.monotonic()
        if now - reported > _REPORT_SECONDS:
            reported = now
            left = (now - started) * (size - offset) / max(offset, 1)
            report("index", offset, size)
            log.info("%d passages, %.0f %% of the corpus, about %.0f s left", number, 100 * offset / size, left)
        yield offset, document


def main(arguments: list[str] | None = None) -> int:
    """Entry point; exit code 2 for a mistake in the job."""
    parser = argparse.ArgumentParser(prog="python -m rljob_trainer.retriever.build", description=__doc__)
    parser.add_argument("--job", required=True, help="RLJob manifest (YAML or JSON)")
    parser.add_argument("--dir", required=True, help="the job's directory")
    options = parser.parse_args(arguments)
    logs.configure("build-index", form="%(levelname)s %(message)s")
    logging.getLogger("faiss").setLevel(logging.WARNING)
    try:
        spec = load_document(options.job, ("spec", "retriever")).spec.retriever
        if spec is None:
            raise UserError("spec.retriever: the job has none, so there is no index to build")
        print(build_index(spec, options.dir))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
