"""Exact match against golden answers, as in Search-R1."""

import re
import string
from typing import Any

from rljob_trainer.rewards.arguments import Arguments, Scorer
from rljob_trainer.rewards.text import shown
from rljob_trainer.rewards.wellformed import extract_answer, is_well_formed

PUNCTUATION = str.maketrans("", "", string.punctuation)
ARTICLES = re.compile(r"\b(a|an|the)\b")


def normalize_answer(text: str) -> str:
    """Lower case, without ASCII punctuation, without the articles a, an, the, white space collapsed.

    The normalisation of SQuAD's evaluation (Rajpurkar et al. 2016), which Search-R1 uses.
    """
    return " ".join(ARTICLES.sub(" ", text.lower().translate(PUNCTUATION)).split())


def same_answer(answer: str, golden: str) -> bool:
    """Whether two answers are equal after normalisation. What normalises to nothing (`A`, `The`, `+`) is compared as it
    is written, in lower case: an empty answer equals no golden one."""
    normal = normalize_answer(golden)
    return normalize_answer(answer) == normal if normal else answer.strip().lower() == golden.strip().lower() != ""


def golden_answers(label: Any) -> list[str]:
    """Golden answers of a label: a text, a list of texts, or a mapping with `target` (Search-R1's `ground_truth`).

    Raises ValueError on anything else, and when there is none.
    """
    found = label.get("target", label.get("answers")) if isinstance(label, dict) else label
    answers = [found] if isinstance(found, str) else found
    if (
        not isinstance(answers, list | tuple)
        or not answers
        or not all(isinstance(item, str) and item.strip() for item in answers)
    ):
        raise ValueError(
            f"em needs a golden answer (text, list of texts, or {{target: …}}), the label is {shown(label)}"
        )
    return list(answers)


def em(response: str, label: Any, *, format_score: float = 0.0) -> float:
    """1.0 when the answer equals a golden answer after normalisation; otherwise `format_score` when the response is
    well-formed (`wellformed.is_well_formed`), else 0. The answer is that of the last `<answer>…</answer>`."""
    golden, answer = golden_answers(label), extract_answer(response)
    if answer is not None and any(same_answer(answer, each) for each in golden):
        return 1.0
    return format_score if is_well_formed(response) else 0.0


def exact_match(args: Arguments) -> Scorer:
    """The reward `em`."""
    format_score = args.number("formatScore", 0.0)
    return lambda sample: em(sample.response, sample.label, format_score=format_score)
