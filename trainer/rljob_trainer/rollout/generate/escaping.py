"""Text from outside that must not pose as the dialogue."""

import re
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from typing import Any


def escaped(text: str, tags: Iterable[str], tokenizer: Any) -> str:
    """The text without tags of the dialogue (in any case) and without special tokens of the model: `<` and `>` of
    theirs become entities."""
    return _pattern(tuple(tags), special_texts(tokenizer)).sub(_escape, text)


@lru_cache(maxsize=16)
def special_texts(tokenizer: Any) -> tuple[str, ...]:
    """Texts that the tokenizer reads as special tokens: those with a role of their own (`eos_token` …) and those that
    its files merely mark as special, such as the headers of Llama's turns."""
    named: Sequence[str] = getattr(tokenizer, "all_special_tokens", ())
    added: Mapping[int, Any] = getattr(tokenizer, "added_tokens_decoder", {})
    return tuple(dict.fromkeys((*named, *(token.content for token in added.values() if token.special))))


@lru_cache(maxsize=16)
def _pattern(tags: tuple[str, ...], special: tuple[str, ...]) -> re.Pattern[str]:
    marks = [f"</{tag}>" for tag in tags] + [f"<{tag}>" for tag in tags] + [mark for mark in special if mark]
    return re.compile("|".join(re.escape(mark) for mark in sorted(marks, key=len, reverse=True)), re.IGNORECASE)


def _escape(match: re.Match[str]) -> str:
    text = match[0]
    return text.replace("<", "&lt;").replace(">", "&gt;") if "<" in text else f"{text[0]} {text[1:]}"
