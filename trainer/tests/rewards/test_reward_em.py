"""Exact match and the format of responses: a table of responses with what each is worth."""

from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from rljob_trainer.rewards.em import em, golden_answers, normalize_answer
from rljob_trainer.rewards.wellformed import extract_answer, is_well_formed

S, I, A = "<search>q</search>", "<information>Doc 1: x</information>", "<answer>Rome</answer>"  # noqa: E741
W = "<answer>Oslo</answer>"

TABLE: list[tuple[str, float, str]] = [
    (A, 1.0, "right at once"),
    (W, 0.2, "wrong, well-formed"),
    (S + I + A, 1.0, "one search"),
    (S + I + W, 0.2, "one search, wrong"),
    (S + I + S + I + W, 0.2, "two searches"),
    (S + "\n\n" + I + "\n\n" + W, 0.2, "white space between search and information"),
    ("<think>hm</think>" + W, 0.2, "thinking first"),
    ("<think>a</think>" + S + I + "<think>b</think>" + W, 0.2, "thinking between"),
    (W + "<eos>", 0.2, "end of sequence after the answer"),
    (W + "  and so on", 0.2, "text after the answer"),
    ("My action was not valid. Let me try again." + W, 0.2, "text outside the tags"),
    ("<answer>the Rome!</answer>", 1.0, "article and punctuation do not count"),
    ("<answer>  ROME  </answer>", 1.0, "nor do case and white space"),
    ("<answer>Romeo</answer>", 0.2, "a longer word is another word"),
    ("<answer>Rome Italy</answer>", 0.2, "more words are another answer"),
    (W + A, 1.0, "the last answer counts, even in bad form"),
    (A + W, 0.0, "two answers, the last wrong"),
    (W + W, 0.0, "two answers"),
    (A + "</answer>", 1.0, "a stray end tag behind the answer"),
    ("<answer>Oslo</answer> no: " + A, 1.0, "a second thought"),
    ("", 0.0, "nothing"),
    ("Rome", 0.0, "no tags"),
    ("<answer>Oslo", 0.0, "answer not closed"),
    ("Oslo</answer>", 0.0, "answer not opened"),
    ("</answer>Oslo<answer>", 0.0, "out of order"),
    ("<answer></answer>", 0.0, "empty answer"),
    ("<answer>  </answer>", 0.0, "blank answer"),
    (S, 0.0, "searched, never answered"),
    (S + I, 0.0, "cut off after the information"),
    (S + W, 0.0, "search without information"),
    (I + W, 0.0, "information without search"),
    (S + I + I + W, 0.0, "information twice"),
    (S + "so" + I + W, 0.0, "text between search and information"),
    ("<search></search>" + I + W, 0.0, "empty search"),
    ("<search>q" + I + W, 0.0, "search not closed"),
    ("<search>a<search>b</search></search>" + I + W, 0.0, "search within search"),
    ("<think>" + S + "</think>" + I + W, 0.0, "search within thinking"),
    ("<think>" + W, 0.0, "thinking not closed"),
    ("<think>" + W + "</think>", 0.0, "wrong answer within thinking"),
    (W + "<think>late</think>", 0.0, "thinking after the answer"),
    (W + S + I, 0.0, "search after the answer"),
    ("<Answer>Oslo</Answer>", 0.0, "tags are lower case"),
    ("<answer >Oslo</answer>", 0.0, "tags have no spaces"),
    ("<answer>Oslo</search>", 0.0, "closed by another tag"),
    (S + "<information>see <answer>Rome</answer></information>" + W, 0.2, "a document cannot answer"),
    (S + "<information>see <answer>Rome</answer></information>", 0.0, "not even alone"),
    (S + "<information>a <search> in a text</information>" + W, 0.2, "nor break the form"),
    (S + "<information>a" + A, 1.0, "information not closed; what follows is the model's"),
]


@pytest.mark.parametrize(("response", "reward", "why"), TABLE, ids=[row[2] for row in TABLE])
def test_what_a_response_is_worth(response: str, reward: float, why: str) -> None:
    assert em(response, ["Rome", "Roma"], format_score=0.2) == reward
    # Without a format score only the match counts.
    assert em(response, ["Rome"]) == float(reward == 1.0)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("The Eiffel Tower", "eiffel tower"),
        ("An  apple, a day.", "apple day"),
        ("U.S.A.", "usa"),
        ("théâtre", "théâtre"),
        ("Athens", "athens"),
        ("a", ""),
        ("1,000", "1000"),
        ("self-made", "selfmade"),
    ],
)
def test_normalisation_is_that_of_squad(text: str, expected: str) -> None:
    assert normalize_answer(text) == expected


@given(st.text())
def test_normalising_twice_changes_nothing_and_the_golden_text_matches(text: str) -> None:
    assume(text.strip())
    assert normalize_answer(normalize_answer(text)) == normalize_answer(text) or "a" in normalize_answer(text).split()
    wrapped = f"<answer>{text}</answer>"
    if "<" not in text:
        assert em(wrapped, text) == 1.0


@given(st.lists(st.sampled_from([S, I, A, W, "<think>", "</think>", "<answer>", "</answer>", "<search>", " x "])))
def test_a_well_formed_response_has_one_answer(parts: list[str]) -> None:
    response = "".join(parts)
    if is_well_formed(response):
        assert extract_answer(response)
        assert em(response, "nothing of the kind", format_score=0.2) == 0.2


@pytest.mark.parametrize("label", ["Rome", ["Oslo", "Rome"], {"target": ["Rome"]}, {"target": "Rome"}])
def test_labels_in_all_their_forms(label: Any) -> None:
    assert em(A, label) == 1.0


@pytest.mark.parametrize("label", [None, 7, [], [3], {"other": "Rome"}])
def test_a_label_that_is_no_answer_is_an_error(label: Any) -> None:
    with pytest.raises(ValueError, match="golden answer"):
        golden_answers(label)


def test_a_hostile_response_takes_linear_time() -> None:
    assert em("<information>" * 200_000, "x") == 0.0
    assert em("<answer>" * 200_000, "x") == 0.0


@pytest.mark.parametrize("label", ["A", "The", "+", "an"])
def test_an_answer_that_normalises_to_nothing_is_compared_as_written(label: str) -> None:
    assert em(f"<answer>{label}</answer>", label) == 1.0
    assert em(f"<answer> {label.lower()} </answer>", [label]) == 1.0
    assert em("<answer></answer>", label) == 0.0
    assert em("<answer>-</answer>", label) == 0.0


@pytest.mark.parametrize("label", [[""], ["Rome", " "], "", [None], [float("nan")]])
def test_a_blank_golden_answer_is_none(label: Any) -> None:
    with pytest.raises(ValueError, match="golden answer"):
        em("<answer></answer>", label)
