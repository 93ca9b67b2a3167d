"""Where a generation ends: stop strings in the decoded text, end-of-sequence tokens."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rljob_trainer.inference.torch_engine.stopping import Stops

PIECES = [
    "<pad>",
    "<eos>",
    "a",
    "b",
    "<",
    ">",
    "</",
    "/",
    "s>",
    "ab",
    "b<",
    "</s>",
    "</s>a",
    "x</s>y",
    " ",
    "",
    "é",
    "\n",
]
EOS = 1


class Pieces:
    """Decoding is concatenation of PIECES."""

    eos_token_id: int | None = EOS

    def decode(self, token_ids: Any, *, skip_special_tokens: bool = False) -> str:
        return "".join(PIECES[i] for i in token_ids)

    def encode(self, text: str, *, add_special_tokens: bool = False) -> list[int]:
        raise AssertionError("stopping never encodes")


class Bytes(Pieces):
    """Tokens are bytes; what is not whole UTF-8 decodes to the replacement character, as byte-level tokenizers do."""

    def decode(self, token_ids: Any, *, skip_special_tokens: bool = False) -> str:
        return bytes(token_ids).decode("utf-8", errors="replace")


def naive(
    tokenizer: Pieces, stop: list[str], ignore_eos: bool, ids: list[int], stop_ids: tuple[int, ...] = ()
) -> tuple[int, str | None] | None:
    """Decode everything after every token: the number of tokens at which it ends, and why."""
    strings = [text for text in stop if text]
    for n in range(1, len(ids) + 1):
        if ids[n - 1] in (EOS, *stop_ids) and not ignore_eos:
            return n, None
        text = tokenizer.decode(ids[:n])
        if places := [(text.find(string), i) for i, string in enumerate(strings) if string in text]:
            return n, strings[min(places)[1]]
    return None


def fast(stops: Stops, number: int, ids: list[int]) -> tuple[int, str | None] | None:
    for n in range(1, len(ids) + 1):
        if stops.candidates[number, ids[n - 1]]:
            ended, stop = stops.check(number, ids[:n])
            if ended:
                return n, stop
    return None


@given(
    stop=st.lists(st.text(alphabet="ab</>s é\n", max_size=6), max_size=3),
    ignore_eos=st.booleans(),
    ids=st.lists(st.integers(0, len(PIECES) - 1), max_size=60),
    stop_ids=st.lists(st.integers(0, len(PIECES) + 3), max_size=2).map(tuple),
)
def test_as_if_all_were_decoded_after_every_token(
    stop: list[str], ignore_eos: bool, ids: list[int], stop_ids: tuple[int, ...]
) -> None:
    tokenizer = Pieces()
    stops = Stops(tokenizer, len(PIECES), [EOS])
    number = stops.number(stop, ignore_eos, stop_ids)
    assert fast(stops, number, ids) == naive(tokenizer, stop, ignore_eos, ids, stop_ids)


@given(
    stop=st.lists(st.text(alphabet="a。é>", min_size=1, max_size=4), min_size=1, max_size=2),
    text=st.text(alphabet="a。é>b", max_size=40),
)
def test_stop_strings_of_several_bytes(stop: list[str], text: str) -> None:
    tokenizer = Bytes()
    stops = Stops(tokenizer, 256, [])
    ids = list(text.encode())
    assert fast(stops, stops.number(stop, True), ids) == naive(tokenizer, stop, True, ids)


@pytest.mark.parametrize(
    ("pieces", "end"),
    [
        (["a", "</s>"], 2),  # a token of its own
        (["a", "<", "/", "s>", "b"], 4),  # over three tokens
        (["b<", "/", "s>"], 3),  # begins inside a token
        (["a", "x</s>y", "b"], 2),  # inside a token: the token is kept whole
        (["a", "</s>a"], 2),
        (["</", "s>"], 2),
        (["</", "b", "s>"], None),
    ],
)
def test_a_stop_string_over_and_inside_tokens(pieces: list[str], end: int | None) -> None:
    stops = Stops(Pieces(), len(PIECES), [EOS])
    found = fast(stops, stops.number(["</s>"], False), [PIECES.index(piece) for piece in pieces])
    assert found == (None if end is None else (end, "</s>"))


def test_long_text_is_not_decoded_again_and_again() -> None:
    """A candidate far into a long text costs a window, not the text."""
    read = []

    class Counting(Pieces):
        def decode(self, token_ids: Any, *, skip_special_tokens: bool = False) -> str:
            read.append(len(token_ids))
            return super().decode(token_ids)

    stops = Stops(Counting(), len(PIECES), [EOS])
    number = stops.number(["</s>"], False)
    read.clear()
    ids = [PIECES.index("a")] * 5000 + [PIECES.index(">")]
    assert stops.check(number, ids) == (False, None)
    assert sum(read) < 50


def test_the_same_conditions_have_one_number() -> None:
    stops = Stops(Pieces(), len(PIECES), [EOS])
    assert stops.number(["a"], True) == stops.number(("a", ""), True) != stops.number(["a"], False)
    assert stops.candidates.shape == (2, len(PIECES))
