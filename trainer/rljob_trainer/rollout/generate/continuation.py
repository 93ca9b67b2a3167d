"""Text that goes on a sequence of tokens, as tokens."""

from rljob.types import Tokenizer

ANCHOR = "\ue0a3rljob-turn\ue0a4"
"""Stands for text before. It ends with a private-use character, which no tokenizer joins with what follows."""


def continuation_ids(tokenizer: Tokenizer, text: str) -> list[int]:
    """The ids of `text` after other text: without the space that sentencepiece puts before any text it is given."""
    ids = tokenizer.encode(text, add_special_tokens=False)
    anchor = tokenizer.encode(ANCHOR, add_special_tokens=False)
    wanted = tokenizer.decode(anchor, skip_special_tokens=False) + text
    if not ids or tokenizer.decode([*anchor, *ids], skip_special_tokens=False) == wanted:
        return ids
    anchored = anchored_ids(tokenizer, text)
    if anchored is None or tokenizer.decode([*anchor, *anchored], skip_special_tokens=False) != wanted:
        return ids
    return anchored


def anchored_ids(tokenizer: Tokenizer, text: str) -> list[int] | None:
    """The ids of `text` where it follows `ANCHOR`; None when the tokenizer joins the two."""
    anchor = tokenizer.encode(ANCHOR, add_special_tokens=False)
    whole = tokenizer.encode(ANCHOR + text, add_special_tokens=False)
    return whole[len(anchor) :] if whole[: len(anchor)] == anchor else None
