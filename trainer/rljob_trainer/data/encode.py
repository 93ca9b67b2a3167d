"""Text to token ids for training: what is trained on and what is not never share a token.

A row is cut where its loss mask changes and the pieces are tokenised one by one, as a rollout's are: the prompt by
itself, and what the model adds to it. Tokenizers that put a space before any text they are given (sentencepiece's
`▁`) would change such pieces: their rows are tokenised whole, and a token across a cut is an error.

The common byte-level BPE tokenizers (GPT-2, Llama 3, Qwen) take text apart before they merge anything, always between
a character that is no space and a space with a letter after it. Between those places text is looked up in a table that
holds every stretch seen so far: exactly the tokenizer's own ids, several times as fast. ASCII text is even taken apart
by the tokenizer's own pattern, whose letters, digits and white space are then A to Z, 0 to 9 and six characters.
"""

import json
import re
from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Any

import numpy as np
from rljob_api.errors import UserError

Segment = tuple[str, bool]
"""Text, and whether it is trained on."""

_STRETCHES = re.compile(r"(?<=\S)(?= [A-Za-z])")
_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_TABLE_LIMIT = 1_000_000
_LETTERS = r"[^\r\n\p{L}\p{N}]?\p{L}+"
_REST = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_KNOWN_PATTERNS = frozenset(
    f"(?i:'s|'t|'re|'ve|'m|'ll|'d)|{_LETTERS}|{digits}|{_REST}" for digits in (r"\p{N}", r"\p{N}{1,3}")
)
"""How Qwen 2 and 3, and Llama 3 with GPT-4, split text. No alternative has a space after its first character unless
all of it is white space, and none looks behind."""


class StraddlingTokenError(Exception):
    """A token lies across the border between what is trained on and what is not."""


@dataclass(frozen=True)
class Encoded:
    """Token ids of several rows, one after another."""

    ids: np.ndarray[Any, np.dtype[np.int32]]
    """[T] int32."""
    mask: np.ndarray[Any, np.dtype[np.uint8]]
    """[T] uint8, 1 where trained on."""
    lengths: list[int]
    """Tokens of each row; their sum is T."""


class Encoder:
    """Tokenises rows of segments. One per process: it keeps a table of what it has seen."""

    def __init__(self, backend: str) -> None:
        """`backend`: the content of a `tokenizer.json` (`backend_of`)."""
        from tokenizers import Tokenizer

        config = json.loads(backend)
        # It adds special tokens, which the template's text has already, and shifts offsets.
        config["post_processor"] = config["truncation"] = config["padding"] = None
        self._tokenizer = Tokenizer.from_str(json.dumps(config))
        self.whole = adds_prefix(config)
        self.by_stretches = not self.whole and splits_before_words(config)
        self._words = _ascii_words(config) if self.by_stretches else None
        self._added = _added_tokens(config)
        self._table: dict[str, bytes] = {}

    def encode(self, rows: Sequence[Sequence[Segment]]) -> Encoded:
        """Token ids and mask of each row. Raises StraddlingTokenError with the row's place in `rows`."""
        if self.whole:
            return self._encode_whole(rows)
        pieces = [(self._apart(text), train) for segments in rows for text, train in segments]
        self._learn({stretch for stretches, _ in pieces for stretch in stretches})
        look_up = self._table.__getitem__
        found = [b"".join(map(look_up, stretches)) for stretches, _ in pieces]
        sizes = [len(ids) // 4 for ids in found]
        ends = [0, *accumulate(sizes)]
        rows_end = [0, *accumulate(map(len, rows))]
        return Encoded(
            ids=np.frombuffer(b"".join(found), dtype=np.int32),
            mask=np.repeat(np.array([train for _, train in pieces], dtype=np.uint8), sizes),
            lengths=[ends[end] - ends[start] for start, end in pairwise(rows_end)],
        )

    def _apart(self, text: str) -> list[str]:
        """Text in stretches that the tokenizer merges nothing across."""
        if self._words is None:
            return [text]
        if not text.isascii():
            parts = _STRETCHES.split(text)
            return [word for part in parts for word in (self._apart(part) if part.isascii() else [part])]
        if self._added is None:
            return self._words(text)
        stretches: list[str] = []
        for at, part in enumerate(self._added(text)):
            stretches += [part] if at % 2 else self._words(part)  # every other part is an added token
        return stretches

    def _learn(self, stretches: set[str]) -> None:
        if len(self._table) > _TABLE_LIMIT:
            self._table.clear()
        new = sorted(stretches.difference(self._table))
        for stretch, encoding in zip(
            new, self._tokenizer.encode_batch_fast(new, add_special_tokens=False), strict=True
        ):
            self._table[stretch] = array("i", encoding.ids).tobytes()

    def _encode_whole(self, rows: Sequence[Sequence[Segment]]) -> Encoded:
        texts = ["".join(text for text, _ in segments) for segments in rows]
        encodings = self._tokenizer.encode_batch(texts, add_special_tokens=False)
        ids: list[int] = []
        mask: list[int] = []
        for number, (segments, encoding) in enumerate(zip(rows, encodings, strict=True)):
            ids += encoding.ids
            mask += _mask(segments, encoding.offsets, number)
        lengths = [len(encoding.ids) for encoding in encodings]
        return Encoded(np.array(ids, dtype=np.int32), np.array(mask, dtype=np.uint8), lengths)


def _mask(segments: Sequence[Segment], offsets: Sequence[tuple[int, int]], number: int) -> list[int]:
    """The mask of a row tokenised whole, from the characters that each token stands for."""
    trained: list[int] = []
    for text, train in segments:
        trained += [int(train)] * len(text)
    mask = []
    for start, end in offsets:
        here = trained[start:end] or trained[start : start + 1] or trained[-1:]
        if min(here) != max(here):
            raise StraddlingTokenError(number)
        mask.append(here[0])
    return mask


def backend_of(tokenizer: Any, field: str) -> str:
    """The content of a transformers tokenizer's `tokenizer.json`. Raises UserError when it has none ("slow")."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise UserError(
            f"{field}: a {type(tokenizer).__name__} has no tokenizer.json, which supervised fine-tuning needs",
            hint="use the model's fast tokenizer",
        )
    return str(backend.to_str())


def adds_prefix(config: dict[str, Any]) -> bool:
    """Whether a tokenizer puts a space before the text it is given, so that the pieces of a text become another."""
    steps = [*_steps(config.get("normalizer"), "normalizers"), *_steps(config.get("pre_tokenizer"), "pretokenizers")]
    return any(
        step["type"] == "Prepend"
        or (step["type"] == "Metaspace" and step.get("prepend_scheme", "always") != "never")
        or (step["type"] == "ByteLevel" and step.get("add_prefix_space", True))
        for step in steps
    )


def splits_before_words(config: dict[str, Any]) -> bool:
    """Whether a byte-level BPE always takes text apart before a space and a letter that follow no white space."""
    model = config["model"]
    if model.get("type") != "BPE" or model.get("dropout"):
        return False
    if any(
        added["lstrip"] or added["rstrip"] or added["single_word"] or re.search(r"\s", added["content"])
        for added in config.get("added_tokens") or []
    ):
        return False
    if any(step["type"] != "NFC" for step in _steps(config.get("normalizer"), "normalizers")):
        return False
    steps = _steps(config.get("pre_tokenizer"), "pretokenizers")
    if not steps or steps[-1]["type"] != "ByteLevel":
        return False
    if len(steps) == 1:
        return bool(steps[0].get("use_regex", True))  # GPT-2's own pattern
    first = steps[0]
    return (
        len(steps) == 2
        and first["type"] == "Split"
        and first["behavior"] == "Isolated"
        and not first.get("invert")
        and first["pattern"].get("Regex") in _KNOWN_PATTERNS
    )


def _ascii_words(config: dict[str, Any]) -> Callable[[str], list[str]]:
    """The pattern of a `splits_before_words` tokenizer for ASCII text. White space is spelt out: Python counts four
    control characters more."""
    steps = _steps(config["pre_tokenizer"], "pretokenizers")
    pattern = _GPT2 if len(steps) == 1 else steps[0]["pattern"]["Regex"]
    for unicode, plain in (
        (r"[^\s\p{L}\p{N}]", r"[^ \t\n\v\f\rA-Za-z0-9]"),
        (r"[^\r\n\p{L}\p{N}]", r"[^\r\nA-Za-z0-9]"),
        (r"\p{L}", "[A-Za-z]"),
        (r"\p{N}", "[0-9]"),
        (r"\S", r"[^ \t\n\v\f\r]"),
        (r"\s", r"[ \t\n\v\f\r]"),
    ):
        pattern = pattern.replace(unicode, plain)
    return re.compile(f"(?:{pattern})" if not pattern.startswith("(?i:") else pattern).findall


def _added_tokens(config: dict[str, Any]) -> Callable[[str], list[Any]] | None:
    """Splits text at the added tokens, keeping them."""
    added = sorted((token["content"] for token in config.get("added_tokens") or []), key=len, reverse=True)
    return re.compile(f"({'|'.join(map(re.escape, added))})").split if added else None


def _steps(part: Any, inner: str) -> list[dict[str, Any]]:
    if not part:
        return []
    return [step for each in part[inner] for step in _steps(each, inner)] if part["type"] == "Sequence" else [part]
