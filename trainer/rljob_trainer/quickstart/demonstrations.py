"""Demonstrations of searching and answering, each with faults: the format is learnt from them, the skill is not."""

from collections.abc import Mapping, Sequence
from random import Random
from typing import Protocol, TypedDict

from rljob_trainer.retriever.hashed import HashedEncoder
from rljob_trainer.retriever.ranking import exact_scores, order
from rljob_trainer.rollout.search_format import format_information, split_contents

QUERY_DIMENSION = 256
"""Vector size of the hashed encoder that ranks here; examples/quickstart.yaml has the same."""


class Segment(TypedDict):
    """A stretch of a demonstration; `train`: the loss is taken on it."""

    text: str
    train: bool


class Asked(Protocol):
    """What is needed of a question."""

    @property
    def text(self) -> str: ...
    @property
    def entity(self) -> str: ...
    @property
    def relations(self) -> tuple[str, ...]: ...


class Demonstrator:
    """Plays a searcher that follows documents, with the given probabilities of doing each thing right."""

    def __init__(
        self,
        corpus: Sequence[Mapping[str, str]],
        topk: int,
        relation_named: float,
        turns_right: float,
        document_right: float,
    ) -> None:
        self._topk = topk
        self._relation_named = relation_named
        self._turns_right = turns_right
        self._document_right = document_right
        self._encoder = HashedEncoder(QUERY_DIMENSION)
        self._found: dict[tuple[str, str], list[Mapping[str, str]]] = {}
        self._about: dict[str, list[Mapping[str, str]]] = {}
        for passage in corpus:
            entity = split_contents(passage["contents"])[0].rpartition(" ")[0]
            self._about.setdefault(entity, []).append(passage)

    def show(self, rng: Random, question: Asked) -> list[Segment]:
        """One demonstration: the question, searches with what they find, an answer."""
        hops = len(question.relations)
        searches = hops if rng.random() < self._turns_right else 3 - hops
        segments: list[Segment] = [{"text": question.text, "train": False}]
        entity = question.entity
        for turn in range(searches):
            named = rng.random() < self._relation_named
            relation = question.relations[min(turn, hops - 1)] if named else ""
            query = f"{entity} {relation}".strip()
            documents = self.search(entity, relation)
            segments.append({"text": f"<search> {query}</search>", "train": True})
            segments.append({"text": format_information(documents), "train": False})
            read = documents[0] if rng.random() < self._document_right else rng.choice(documents)
            entity = split_contents(read["contents"])[1]
        segments.append({"text": f"<answer> {entity}</answer><eos>", "train": True})
        return segments

    def search(self, entity: str, relation: str) -> list[Mapping[str, str]]:
        """What the retriever answers to this query: it ranks the entity's own passages before all others."""
        key = (entity, relation)
        if key not in self._found:
            about = self._about[entity]
            query = self._encoder.encode_queries([f"{entity} {relation}".strip()])[0]
            scores = exact_scores(query, self._encoder.encode_passages([passage["contents"] for passage in about]))
            best = order(scores, [passage["id"] for passage in about])[: self._topk]
            self._found[key] = [about[position] for position in best]
        return self._found[key]
