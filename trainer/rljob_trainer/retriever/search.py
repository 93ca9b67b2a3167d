"""From queries to documents: encoder, index and corpus in one."""

import logging
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from rljob_api.errors import UserError
from rljob_api.v1alpha1.retriever import RetrieverSpec

from rljob_trainer.job_paths import existing_file
from rljob_trainer.retriever.corpus import Corpus, Document, scan_offsets
from rljob_trainer.retriever.encoder import Encoder, load_encoder
from rljob_trainer.retriever.index import FlatIndex, check_encoder, is_current, offsets_path, read_manifest
from rljob_trainer.retriever.ranking import exact_scores, order

log = logging.getLogger(__name__)

_SPARE = 8
"""Candidates beyond topk: faiss may swap near equals, which the exact scores then put in order."""
_MOST_CANDIDATES = 2048
_TOLERANCE = 1e-5
"""Of faiss' float32 scores of normalised vectors."""
_CACHED_QUERIES = 16384


@dataclass(frozen=True, slots=True)
class Hit:
    """A document and its score (cosine similarity)."""

    document: Document
    score: float


class Searcher(Protocol):
    """What answers the service's queries. Called from one thread at a time."""

    def search(self, queries: Sequence[str], topk: int) -> list[list[Hit]]:
        """Hits per query, best first; none for a query without words."""
        ...

    def probe(self) -> None:
        """Answer a query whose answer is known; raises when that fails."""
        ...

    def describe(self) -> dict[str, str | int]: ...


class DenseSearcher:
    """Exact dense search. The same query has the same answer whatever shares its batch."""

    def __init__(self, encoder: Encoder, index: FlatIndex, corpus: Corpus) -> None:
        if index.passages != len(corpus):
            raise UserError(
                f"spec.retriever.index.path: {index.path} has {index.passages} vectors, but the corpus "
                f"{corpus.path} has {len(corpus)} passages"
            )
        if index.dimension != encoder.dimension:
            raise UserError(
                f"spec.retriever.index.path: {index.path} has vectors of {index.dimension} components, but "
                f"spec.retriever.encoder gives {encoder.dimension}"
            )
        self._encoder = encoder
        self._index = index
        self._corpus = corpus
        # Samples of one group ask the same thing again and again.
        self._cache: OrderedDict[tuple[str, int], list[tuple[int, float]]] = OrderedDict()

    def search(self, queries: Sequence[str], topk: int) -> list[list[Hit]]:
        """See Searcher."""
        unknown = [query for query in dict.fromkeys(queries) if query.strip() and (query, topk) not in self._cache]
        found = dict(zip(unknown, self._rank(unknown, topk), strict=True)) if unknown else {}
        answers = []
        for query in queries:
            rows = found[query] if query in found else self._cache.get((query, topk), [])
            answers.append([Hit(self._corpus[row], score) for row, score in rows])
        for query in queries:
            if (query, topk) in self._cache:
                self._cache.move_to_end((query, topk))
        for query, rows in found.items():
            self._cache[query, topk] = rows
        while len(self._cache) > _CACHED_QUERIES:
            self._cache.popitem(last=False)
        return answers

    def probe(self) -> None:
        """Ask for the first passage's title."""
        title = str(self._corpus[0]["contents"]).partition("\n")[0].strip('" ') or "probe"
        if not self.search([title], 1)[0]:
            raise RuntimeError(f"the index answers nothing to the probe query {title!r}")

    def describe(self) -> dict[str, str | int]:
        """For `GET /`."""
        return {
            "encoder": self._encoder.fingerprint,
            "passages": len(self._corpus),
            "dimension": self._index.dimension,
            "corpus": self._corpus.path.name,
        }

    def _rank(self, queries: Sequence[str], topk: int) -> list[list[tuple[int, float]]]:
        """(row, score) of the best passages per query."""
        vectors = self._encoder.encode_queries(queries)
        wanted = min(topk, self._index.passages)
        count = min(wanted + _SPARE, self._index.passages)
        ranked: list[list[tuple[int, float]]] = [[] for _ in queries]
        open_ = [i for i in range(len(queries)) if vectors[i].any()]
        while open_:
            scores, rows = self._index.search(vectors[open_], count)
            unclear = []
            for position, i in enumerate(open_):
                ranked[i], worst = self._exact(vectors[i], rows[position], scores[position], wanted)
                # A tie that reaches beyond the candidates: which ones faiss left out is its own choice.
                if scores[position][-1] > worst - _TOLERANCE and count < min(self._index.passages, _MOST_CANDIDATES):
                    unclear.append(i)
            open_ = unclear
            count = min(4 * count, self._index.passages, _MOST_CANDIDATES)
        return ranked

    def _exact(
        self, query: NDArray[np.float32], rows: NDArray[np.int64], scores: NDArray[np.float32], wanted: int
    ) -> tuple[list[tuple[int, float]], float]:
        """The best `wanted` of the candidates in their final order, and the last one's score."""
        if self._index.vectors is None:
            exact = scores.astype(np.float64)
        else:
            exact = exact_scores(query, self._index.vectors[rows])
        if len(np.unique(exact)) == len(exact):
            best = np.argsort(-exact)[:wanted].tolist()
        else:
            best = order(exact, [str(self._corpus[int(row)]["id"]) for row in rows])[:wanted]
        return [(int(rows[i]), float(exact[i])) for i in best], float(exact[best[-1]])


def load_searcher(spec: RetrieverSpec, job_dir: str) -> DenseSearcher:
    """Encoder, index and corpus of a job. Raises UserError when something is missing or does not fit."""
    corpus_path = existing_file(spec.corpus, job_dir, "spec.retriever.corpus")
    index_path = existing_file(spec.index.path, job_dir, "spec.retriever.index.path")
    encoder = load_encoder(spec.encoder, job_dir)
    manifest = read_manifest(index_path)
    if manifest is None:
        log.warning("%s has no manifest: trusting that its vectors are this encoder's and this corpus's", index_path)
        offsets = scan_offsets(corpus_path)
    else:
        check_encoder(index_path, manifest, encoder)
        if not is_current(index_path, manifest, corpus_path):
            raise UserError(
                f"spec.retriever.corpus: {corpus_path} is not the corpus that {index_path} was built from",
                hint="build the index again: python -m rljob_trainer.retriever.build",
            )
        offsets = np.load(offsets_path(index_path), mmap_mode="r")
    return DenseSearcher(encoder, FlatIndex(Path(index_path), gpu=spec.index.gpu), Corpus(corpus_path, offsets))
