"""A word-level tokenizer for the made-up world, in Hugging Face's file format.

Every token carries its own leading space, and no token's text begins another's: decoding is plain concatenation and
text splits back into the same tokens, whatever their order. The files are written as JSON, so that the step needs no
tokenizer library.
"""

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rljob_trainer.rollout.search_format import INVALID_ACTION

PAD, EOS, UNKNOWN = "<pad>", "<eos>", "<unk>"
TAGS = ("<search>", "</search>", "<information>", "</information>", "<answer>", "</answer>", "<think>", "</think>")
QUESTION = "What is"
POSSESSIVE = "'s"
MAX_DOCUMENTS = 10
CHAT_TEMPLATE = "{% for message in messages %}{{ message['content'] }}{% endfor %}"
"""The bare text: the model is trained on questions, not on chat."""


def vocabulary(relations: Sequence[str], syllables: Sequence[str]) -> list[str]:
    """All tokens by id: special ones, tags, what frames documents and questions, relations, syllables."""
    documents = ["Doc 1(Title:", *(f"\nDoc {number}(Title:" for number in range(2, MAX_DOCUMENTS + 1))]
    tags = re.compile("|".join(map(re.escape, TAGS)))
    # The correction is one sentence that the model sees often when it fails: a few tokens instead of fifty.
    correction = list(dict.fromkeys(tags.split(INVALID_ACTION)))
    words = [f" {word}" for word in (*relations, *syllables)]
    return [PAD, EOS, UNKNOWN, *TAGS, QUESTION, POSSESSIVE, "?", ")", "\n\n", *documents, *correction, *words]


def tokenizer_json(tokens: Sequence[str]) -> dict[str, Any]:
    """The content of `tokenizer.json`: a WordLevel model behind a splitter that knows the vocabulary."""
    special = {PAD, EOS, UNKNOWN}
    added = [
        {
            "id": tokens.index(token),
            "content": token,
            "single_word": False,
            "lstrip": False,
            "rstrip": False,
            "normalized": False,
            # Tags are text that rewards read: they stay when special tokens are skipped.
            "special": token in special,
        }
        for token in (PAD, EOS, UNKNOWN, *TAGS)
    ]
    plain = [token for token in tokens if token not in special and token not in TAGS]
    pattern = "|".join(re.escape(token) for token in sorted(plain, key=len, reverse=True))
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added,
        "normalizer": None,
        "pre_tokenizer": {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False},
        "post_processor": None,
        "decoder": {"type": "Fuse"},
        "model": {
            "type": "WordLevel",
            "vocab": {token: number for number, token in enumerate(tokens)},
            "unk_token": UNKNOWN,
        },
    }


def write_tokenizer(folder: Path, relations: Sequence[str], syllables: Sequence[str]) -> int:
    """Write `tokenizer.json` and `tokenizer_config.json`; returns the size of the vocabulary."""
    tokens = vocabulary(relations, syllables)
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "pad_token": PAD,
        "eos_token": EOS,
        "unk_token": UNKNOWN,
        "clean_up_tokenization_spaces": False,
        "model_max_length": 512,
        "padding_side": "left",
        "chat_template": CHAT_TEMPLATE,
    }
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in (("tokenizer.json", tokenizer_json(tokens)), ("tokenizer_config.json", config)):
        (folder / name).write_text(json.dumps(content, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
    return len(tokens)
