"""Token ids of training rows: exactly the tokenizer's, in pieces that the loss mask does not cross."""

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rljob_trainer.data.encode import Encoder, StraddlingTokenError
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

QWEN = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
LLAMA = QWEN.replace(r"\p{N}|", r"\p{N}{1,3}|", 1)
CORPUS = ["The sum of 12 and 30 isn't 43, it's 42.\n\nSo x = (y + z) * 2;\n", "naïve façade — été 東京 is big\t"] * 20
PARTS = [
    "The",
    " ",
    "  ",
    "\n",
    " the",
    "x",
    "=",
    " (y",
    "12",
    "1234",
    "'s",
    " 'S",
    "é",
    "e\u0301",
    " \u0301a",
    "\u00a0",
]
PARTS += ["\t", "東京", "<|end|>", " A", "\r\n", "\u2028b", "...", "!\n", "\x1c", "\u200bc"]
ASCII = [part for part in PARTS if part.isascii()] + ["'ll", "'RE", "\v", "\x1f ", "<|end", "|>", "_", "(x", "9"]
TEXT = st.one_of(
    st.lists(st.sampled_from(PARTS), max_size=14).map("".join),
    st.lists(st.sampled_from(ASCII), max_size=20).map("".join),
    st.text(st.characters(max_codepoint=127), max_size=30),
)


def byte_level(pattern: str | None, prefix: bool = False) -> str:
    tokenizer = Tokenizer(models.BPE())
    if pattern is None:
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=prefix)
    else:
        tokenizer.normalizer = normalizers.NFC()
        split = pre_tokenizers.Split(Regex(pattern), "isolated")
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(False, use_regex=False)])
    trainer = trainers.BpeTrainer(
        vocab_size=400, show_progress=False, special_tokens=["<|end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )  # fmt: skip
    tokenizer.train_from_iterator(CORPUS, trainer)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer.to_str()


BACKENDS = {"qwen": byte_level(QWEN), "llama 3": byte_level(LLAMA), "gpt-2": byte_level(None)}


@pytest.mark.parametrize("name", BACKENDS)
@settings(max_examples=400, deadline=None)
@given(rows=st.lists(st.lists(st.tuples(TEXT, st.booleans()), max_size=3), min_size=1, max_size=3))
def test_text_looked_up_in_stretches_has_the_tokenizers_own_ids(name: str, rows: list[list[tuple[str, bool]]]) -> None:
    encoder = Encoder(BACKENDS[name])
    assert encoder.by_stretches
    whole = Tokenizer.from_str(BACKENDS[name])
    wanted = [[(id_, train) for text, train in row for id_ in whole.encode(text).ids] for row in rows]
    encoded = encoder.encode(rows)
    assert encoded.lengths == [len(row) for row in wanted]
    assert encoded.ids.tolist() == [id_ for row in wanted for id_, _ in row]
    assert encoded.mask.tolist() == [int(train) for row in wanted for _, train in row]


def test_a_tokenizer_that_is_not_known_to_split_there_is_asked_for_every_piece() -> None:
    config = json.loads(BACKENDS["qwen"])
    config["pre_tokenizer"]["pretokenizers"][0]["pattern"] = {"Regex": r"\S+ \S+|\s+|\S+"}
    encoder = Encoder(json.dumps(config))
    assert not encoder.by_stretches
    text = "The sum of 12 and 30"
    assert encoder.encode([[(text, True)]]).ids.tolist() == Tokenizer.from_str(json.dumps(config)).encode(text).ids
    spaced = json.loads(BACKENDS["qwen"])
    spaced["added_tokens"][0]["lstrip"] = True
    assert not Encoder(json.dumps(spaced)).by_stretches


def test_a_tokenizer_that_adds_a_space_reads_a_row_whole() -> None:
    backend = byte_level(None, prefix=True)
    encoder = Encoder(backend)
    assert encoder.whole
    row = [("The sum<|end|>", False), ("of 12", True), ("<|end|>", True)]
    encoded = encoder.encode([row])
    whole: Any = Tokenizer.from_str(backend).encode("The sum<|end|>of 12<|end|>")
    assert encoded.ids.tolist() == whole.ids
    trained = [text for text, mask in zip(whole.tokens, encoded.mask.tolist(), strict=True) if mask]
    assert "".join(trained).replace("Ġ", " ") == " of 12<|end|>"
    with pytest.raises(StraddlingTokenError):
        encoder.encode([row, [("The s", False), ("um", True)]])
