"""Multi-turn generation with a search tool: Search-R1 (Jin et al. 2025, arXiv:2503.09516)."""

import re
from collections.abc import Awaitable, Callable, Sequence
from typing import Literal

from rljob.types import Engine, Generation, Sample, SamplingParams

from rljob_trainer.rollout.generate.base import Limits
from rljob_trainer.rollout.generate.chat_turns import Bridge, continuation_ids
from rljob_trainer.rollout.generate.escaping import escaped
from rljob_trainer.rollout.generate.multi_turn import ObservationError, generate_turns
from rljob_trainer.rollout.search_client import Document, SearchError
from rljob_trainer.rollout.search_format import INVALID_ACTION, format_information

SEARCH_END, ANSWER_END = "</search>", "</answer>"
TAGS = ("think", "search", "information", "answer")
_ACTION = re.compile(r"<(search|answer)>(.*?)</\1>", re.DOTALL)

Search = Callable[[str], Awaitable[Sequence[Document]]]


class SearchGenerate:
    """Turns of thinking and acting. A turn ends at `</search>` or `</answer>`.

    - A search is answered by the documents between `<information>` tags, as an observation that is not trained on.
    - An answer completes the sample.
    - Anything else that came to an end (no well-formed action, an empty query, the end-of-sequence token) is an
      invalid action: a correction is appended and the next turn follows. An end-of-sequence token stays among the ids.
    - Each generation is a turn; a search in the last one is not answered.
    - A turn cut off by its token limit, and an observation for which there is no room, truncate the sample.
    - A search that is not answered fails this sample, and only this one; the reason is in `info["error"]`.
    """

    def __init__(self, limits: Limits, max_turns: int, search: Search) -> None:
        self._limits, self._max_turns, self._search = limits, max_turns, search

    async def __call__(self, sample: Sample, sampling: SamplingParams, engine: Engine) -> Sample:
        counts = {"searches": 0.0, "invalid_actions": 0.0, "search_failures": 0.0}

        async def observe(turn: Generation, last: bool) -> Bridge | None:
            action, query = parse_action(turn.text)
            counts["invalid_actions"] += action == "invalid"
            if action == "answer" or last:
                return None
            text = INVALID_ACTION
            if action == "search":
                counts["searches"] += 1
                try:
                    text = format_information(neutralise(await self._search(query), engine))
                except SearchError as error:
                    counts["search_failures"] += 1
                    raise ObservationError(str(error)) from None
            return Bridge(continuation_ids(engine.tokenizer, text), text)

        turns = await generate_turns(
            sample,
            sampling,
            engine,
            limits=self._limits,
            max_turns=self._max_turns,
            observe=observe,
            stop=(SEARCH_END, ANSWER_END),
        )
        sample.info |= {"turns": float(turns), **counts}
        return sample


def parse_action(text: str) -> tuple[Literal["search", "answer", "invalid"], str]:
    """The first whole action in a turn's text, and what stands between its tags."""
    match = _ACTION.search(text)
    if match is None:
        return "invalid", ""
    content = match[2].strip()
    if match[1] == "answer":
        return "answer", content
    return ("search", content) if content else ("invalid", "")


def neutralise(documents: Sequence[Document], engine: Engine) -> list[Document]:
    """Documents whose text cannot pose as a tag of the dialogue or as a special token of the model."""
    return [{**document, "contents": escaped(document["contents"], TAGS, engine.tokenizer)} for document in documents]
