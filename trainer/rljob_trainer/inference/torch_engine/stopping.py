"""Finding where a generation ends: end-of-sequence tokens and stop strings.

A stop string is looked for in the decoded text, so it may span tokens or lie inside one. Decoding after every token
would be slow; a match can only be completed by a token whose own text holds the last character of a stop string (or
is not decodable alone), so only such candidates are looked at.
"""

from collections.abc import Sequence

import numpy as np
from rljob.types import Tokenizer

_UNDECODABLE = "\ufffd"
_SLACK = 8
"""Characters at the start of a decoded window that may differ from the whole text (stripped spaces, partial bytes)."""


class Stops:
    """The stop conditions of one engine: registered once, then looked up by number for whole rows of tokens."""

    def __init__(self, tokenizer: Tokenizer, vocab_size: int, eos_ids: Sequence[int]) -> None:
        self._tokenizer = tokenizer
        self._eos = frozenset(i for i in eos_ids if 0 <= i < vocab_size)
        self._vocab_size = vocab_size
        self._texts: list[str] | None = None
        self._numbers: dict[tuple[tuple[str, ...], frozenset[int]], int] = {}
        self._strings: list[tuple[str, ...]] = []
        self._ends: list[frozenset[int]] = []
        self.candidates = np.zeros((0, vocab_size), dtype=bool)
        """[number, token id]: whether a token may end a generation and has to be looked at."""

    def number(self, stop: Sequence[str], ignore_eos: bool, stop_ids: Sequence[int] = ()) -> int:
        """Number of a set of stop conditions; see `SamplingParams`."""
        strings = tuple(text for text in stop if text)
        ends = frozenset() if ignore_eos else self._eos.union(i for i in stop_ids if 0 <= i < self._vocab_size)
        key = (strings, ends)
        if key not in self._numbers:
            self._numbers[key] = len(self._strings)
            self._strings.append(strings)
            self._ends.append(ends)
            row = self._candidate_tokens(strings)
            row[list(self._ends[-1])] = True
            self.candidates = np.concatenate((self.candidates, row[None]))
        return self._numbers[key]

    def check(self, number: int, token_ids: Sequence[int]) -> tuple[bool, str | None]:
        """Whether the generated `token_ids` end here, and by which stop string (the first in the text)."""
        if token_ids[-1] in self._ends[number]:
            return True, None
        found = self._find(self._strings[number], token_ids)
        return found is not None, found

    def _candidate_tokens(self, strings: tuple[str, ...]) -> np.ndarray:
        if not strings:
            return np.zeros(self._vocab_size, dtype=bool)
        last = {text[-1] for text in strings}
        if " " in last:  # decoders may put spaces between tokens, which no token's own text shows
            return np.ones(self._vocab_size, dtype=bool)
        if self._texts is None:
            self._texts = [self._tokenizer.decode([i], skip_special_tokens=False) for i in range(self._vocab_size)]
        return np.fromiter(
            (not text or _UNDECODABLE in text or not last.isdisjoint(text) for text in self._texts),
            dtype=bool,
            count=self._vocab_size,
        )

    def _find(self, strings: tuple[str, ...], token_ids: Sequence[int]) -> str | None:
        longest = max(map(len, strings), default=0)
        if not longest:
            return None
        size = longest + _SLACK
        while size < len(token_ids):
            window = self._decode(token_ids[-size:])
            if len(window) >= longest + _SLACK:
                if not any(text in window for text in strings):
                    return None
                break
            size *= 2
        text = self._decode(token_ids)
        places = [(text.find(stop), number) for number, stop in enumerate(strings) if stop in text]
        return strings[min(places)[1]] if places else None

    def _decode(self, token_ids: Sequence[int]) -> str:
        return self._tokenizer.decode(token_ids, skip_special_tokens=False)
