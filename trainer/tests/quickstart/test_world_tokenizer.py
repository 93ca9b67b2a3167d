"""The quickstart's tokenizer: text and tokens correspond exactly, through transformers' own loader."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rljob_trainer.quickstart.tokenizer import EOS, PAD, TAGS, UNKNOWN, vocabulary
from rljob_trainer.rollout.search_format import INVALID_ACTION

RELATIONS = ("mentor", "home", "rival", "friend")


@pytest.fixture(scope="module")
def tokenizer(world: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(world / "tokenizer")


def test_special_tokens(tokenizer: Any) -> None:
    assert (tokenizer.pad_token, tokenizer.eos_token, tokenizer.unk_token) == (PAD, EOS, UNKNOWN)
    for tag in TAGS:
        ids = tokenizer.encode(tag, add_special_tokens=False)
        assert len(ids) == 1
        # Rewards read tags: they are text, also for those who leave special tokens out.
        assert tokenizer.decode(ids, skip_special_tokens=True) == tag


def test_no_token_begins_another() -> None:
    tokens = vocabulary(RELATIONS, ["Zafo", "Miru", "Kelo"])
    assert len(set(tokens)) == len(tokens)
    assert [(a, b) for a in tokens for b in tokens if a != b and b.startswith(a)] == []


@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_decoded_tokens_encode_to_themselves(tokenizer: Any, data: st.DataObject) -> None:
    ids = data.draw(st.lists(st.integers(0, len(tokenizer) - 1), max_size=60))
    assert tokenizer.encode(tokenizer.decode(ids, skip_special_tokens=False), add_special_tokens=False) == ids


@settings(max_examples=100, deadline=None)
@given(data=st.data())
def test_decoding_is_concatenation(tokenizer: Any, data: st.DataObject) -> None:
    ids = data.draw(st.lists(st.integers(0, len(tokenizer) - 1), max_size=40))
    cut = data.draw(st.integers(0, len(ids)))
    whole = tokenizer.decode(ids, skip_special_tokens=False)
    assert tokenizer.decode(ids[:cut]) + tokenizer.decode(ids[cut:]) == whole


def test_the_worlds_texts_are_short_and_known(world: Path, tokenizer: Any) -> None:
    unknown = tokenizer.unk_token_id
    for name in ("train", "held_out"):
        for line in (world / f"{name}.jsonl").read_text(encoding="utf-8").splitlines():
            row = json.loads(line)
            ids = tokenizer.encode(row["question"], add_special_tokens=False)
            assert unknown not in ids
            assert tokenizer.decode(ids) == row["question"]
            assert len(ids) <= 8
            assert (
                tokenizer.apply_chat_template(row["prompt"], add_generation_prompt=True, tokenize=False)
                == row["question"]
            )
            answer = tokenizer.encode(f"<answer> {row['golden_answers'][0]}</answer>", add_special_tokens=False)
            assert len(answer) == 4
            assert unknown not in answer
    for line in (world / "demonstrations.jsonl").read_text(encoding="utf-8").splitlines():
        texts = [segment["text"] for segment in json.loads(line)["segments"]]
        pieces = [tokenizer.encode(text, add_special_tokens=False) for text in texts]
        whole = tokenizer.encode("".join(texts), add_special_tokens=False)
        assert [token for piece in pieces for token in piece] == whole
        assert unknown not in whole
        assert tokenizer.decode(whole, skip_special_tokens=False) == "".join(texts)
        assert len(whole) <= 80


def test_a_correction_takes_few_tokens(tokenizer: Any) -> None:
    ids = tokenizer.encode(INVALID_ACTION, add_special_tokens=False)
    assert len(ids) <= 10
    assert tokenizer.decode(ids, skip_special_tokens=False) == INVALID_ACTION


def test_unknown_text_does_not_fail(tokenizer: Any) -> None:
    assert tokenizer.unk_token_id in tokenizer.encode("Who wrote Faust?", add_special_tokens=False)
