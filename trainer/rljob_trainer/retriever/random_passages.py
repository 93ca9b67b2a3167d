"""A retriever that answers unrelated documents: what a model scores with it, it knows by itself."""

import hashlib
from collections.abc import Sequence
from random import Random

from rljob_api.v1alpha1.retriever import RetrieverSpec

from rljob_trainer.job_paths import existing_file
from rljob_trainer.retriever.corpus import Corpus, scan_offsets
from rljob_trainer.retriever.search import Hit


class RandomSearcher:
    """Random documents of the corpus, drawn by the query's hash: the same query has the same answer."""

    def __init__(self, corpus: Corpus) -> None:
        self._corpus = corpus

    def search(self, queries: Sequence[str], topk: int) -> list[list[Hit]]:
        """See Searcher; the score is 0."""
        count = min(topk, len(self._corpus))
        answers = []
        for query in queries:
            rng = Random(hashlib.blake2b(query.encode(), digest_size=8).digest())
            rows = rng.sample(range(len(self._corpus)), count) if query.strip() else []
            answers.append([Hit(self._corpus[row], 0.0) for row in rows])
        return answers

    def probe(self) -> None:
        """Read one passage."""
        self.search(["probe"], 1)

    def describe(self) -> dict[str, str | int]:
        """For `GET /`."""
        return {"encoder": "unrelated documents", "passages": len(self._corpus), "corpus": self._corpus.path.name}


def load_random(spec: RetrieverSpec, job_dir: str) -> RandomSearcher:
    """Over the job's corpus; needs no index."""
    path = existing_file(spec.corpus, job_dir, "spec.retriever.corpus")
    return RandomSearcher(Corpus(path, scan_offsets(path)))
