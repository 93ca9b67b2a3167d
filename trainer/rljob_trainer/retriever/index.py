"""The faiss index on disk: a Flat index (exact inner product), memory-mapped, with a manifest of how it was made.

Beside `name.index` lie `name.index.offsets.npy` (where each passage's line starts in the corpus) and, written last,
`name.index.json` (the manifest).
"""

import json
import logging
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rljob_api.errors import UserError

from rljob_trainer.retriever.corpus import corpus_fingerprint
from rljob_trainer.retriever.encoder import Encoder

log = logging.getLogger(__name__)

_SAME_WEIGHTS = 0.999
"""Cosine similarity of probe vectors; float16 on a GPU and float32 on a CPU differ by far less."""


@dataclass(frozen=True, slots=True)
class IndexManifest:
    """How an index was made."""

    encoder: str
    """Fingerprint of the encoder."""
    dimension: int
    passages: int
    corpus: str
    """Fingerprint of the corpus."""
    probe: list[float]
    """Vector of a fixed passage: encoders may share a fingerprint and differ in weights."""
    format: int = 1

    def write_bytes(self) -> bytes:
        return (json.dumps(asdict(self), indent=1) + "\n").encode()


def manifest_path(index: Path) -> Path:
    return index.with_name(index.name + ".json")


def offsets_path(index: Path) -> Path:
    return index.with_name(index.name + ".offsets.npy")


def read_manifest(index: Path) -> IndexManifest | None:
    """The manifest; None when the index came without one. Raises UserError when it is not readable."""
    path = manifest_path(index)
    if not path.is_file():
        return None
    try:
        return IndexManifest(**json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, TypeError) as error:
        raise UserError(
            f"{path} is damaged: {error}", hint="remove it and the index, and build the index again"
        ) from None


def probe_vector(encoder: Encoder) -> NDArray[np.float32]:
    """The encoder's vector of a fixed passage."""
    vector: NDArray[np.float32] = encoder.encode_passages(["A probe\nThe quick brown fox jumps over the lazy dog."])[0]
    return vector


def check_encoder(index: Path, manifest: IndexManifest, encoder: Encoder) -> None:
    """Refuse an index whose vectors are another encoder's: answers would look right and be noise."""
    if manifest.encoder != encoder.fingerprint:
        difference = f"({manifest.encoder}) than spec.retriever.encoder ({encoder.fingerprint})"
    elif float(np.dot(probe_vector(encoder), np.asarray(manifest.probe, dtype=np.float32))) < _SAME_WEIGHTS:
        difference = "than spec.retriever.encoder: of the same shape, but with other weights"
    else:
        return
    raise UserError(
        f"spec.retriever.index.path: {index} was built with another encoder {difference}",
        hint="give the encoder that it was built with, or another path for a new index",
    )


def is_current(index: Path, manifest: IndexManifest, corpus: Path) -> bool:
    """Whether the corpus is still the one that was indexed."""
    return index.is_file() and offsets_path(index).is_file() and manifest.corpus == corpus_fingerprint(corpus)


class FlatIndex:
    """Exact inner-product search. `vectors` is a view of the mapped file, for exact scores; None on GPUs."""

    def __init__(self, path: Path, *, gpu: bool = False) -> None:
        import faiss

        self.path = path
        try:
            # Not IO_FLAG_MMAP: that one maps inverted lists only; this one maps the vectors of a Flat index.
            index = faiss.read_index(str(path), faiss.IO_FLAG_MMAP_IFC)
        except RuntimeError as error:
            raise UserError(f"spec.retriever.index.path: {path} is not a faiss index: {str(error)[-200:]}") from None
        if not isinstance(index, faiss.IndexFlat) or index.metric_type != faiss.METRIC_INNER_PRODUCT:
            raise UserError(
                f"spec.retriever.index.path: {path} is a {type(index).__name__}, not a Flat index of inner products"
            )
        self.dimension: int = index.d
        self.passages: int = index.ntotal
        self.vectors: NDArray[np.float32] | None = None
        if gpu:
            index = _to_gpus(faiss, index)
        elif self.passages:
            flat = faiss.rev_swig_ptr(index.get_xb(), self.passages * self.dimension)
            self.vectors = flat.reshape(self.passages, self.dimension)
        self._index = index

    def search(self, queries: NDArray[np.float32], count: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """Scores and rows [n, count], best first, for queries [n, dimension]."""
        scores, rows = self._index.search(np.ascontiguousarray(queries), count)
        return scores, rows


def _to_gpus(faiss: Any, index: Any) -> Any:
    if not hasattr(faiss, "StandardGpuResources"):
        raise UserError(
            "spec.retriever.index.gpu: true, but the installed faiss has no GPU support",
            hint="use a retriever image with faiss-gpu, or set it to false",
        )
    if faiss.get_num_gpus() == 0:
        raise UserError("spec.retriever.index.gpu: true, but no GPU is visible", hint="set spec.retriever.gpus")
    options = faiss.GpuMultipleClonerOptions()
    options.useFloat16 = True
    options.shard = True
    return faiss.index_cpu_to_all_gpus(index, co=options)
