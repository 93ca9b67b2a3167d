"""Mathematical accuracy by math-verify, as OpenR1 scores it. Runs in a worker process."""

import logging
import re
from dataclasses import dataclass
from functools import cache
from typing import Any

from rljob.types import Sample

from rljob_trainer.rewards.guard import guard
from rljob_trainer.rewards.notation import numbers, same_with_base, tidy, without_spaces
from rljob_trainer.rewards.text import final_answer, is_cut_off, label_text, last_boxed

RELATIVE = 5e-6
"""How far two numbers may lie apart, of the larger one, beside math-verify's six decimals."""
READ = 4000
"""Characters at the end of a response in which an answer without a box is looked for."""
_DELIMITER = re.compile(r"\$+|\\[()\[\]]")
_INSIDE = re.compile(r"(\$+|\\\(|\\\[)([^$]*?)(\$+|\\\)|\\\])")
_PERCENT = re.compile(r"\s*\\?%\s*\Z")


def math(sample: Sample) -> float:
    """1.0 when the response's answer is mathematically equal to the label, else 0.0.

    The answer is looked for after the last `</think>` (an unfinished thought has none) and within the last
    `<answer>` block if there is one. There it is the last `\\boxed{…}`; without a box, what stands in an `<answer>`
    block without LaTeX delimiters; else the formula (`$…$`, `\\(…\\)`) that math-verify takes for the answer. Behind a
    box that the length limit has cut off there is no answer. Notation is `notation.tidy`'s and `notation.numbers`'.
    The label is read the same way; a bare `1/2` or `\\frac{1}{2}` is taken as LaTeX.

    Equality is math-verify's: numbers to 6 decimals and to 6 significant digits, expressions by sympy, sets, intervals,
    tuples and matrices by their elements, relations by both sides; the same text is always equal. A percentage is equal
    to its number and to its hundredth. Raises ValueError for a label that is no mathematics, TooLargeError for
    expressions that are not worth trying.
    """
    gold_text, text = label_text(sample.label, "math"), final_answer(sample)
    if text is None or is_cut_off(text):
        return 0.0
    gold = _formula(gold_text, alone=True)
    answer = _formula(text, alone="<answer>" in sample.response)
    if answer and gold:
        if without_spaces(answer.text) == without_spaces(gold.text):
            return 1.0
        if (same := same_with_base(gold.text, answer.text)) is not None:
            return float(same)
    golds = _read(gold, hundredth=answer is None or not _PERCENT.search(answer.text))
    if not golds:
        raise ValueError(f"math-verify cannot read the label {gold_text[:200]!r}")
    answers = _read(answer, hundredth=gold is None or not _PERCENT.search(gold.text))
    return float(any(_equal(one, other) for one in golds for other in answers))


def warm_up() -> None:
    """Import what verifying needs, so that no sample's time limit pays for it."""
    math(Sample("", [], response=r"\boxed{\frac{1}{2}}", label="0.5"))


@dataclass(frozen=True, slots=True)
class _Formula:
    """Where mathematics stands: a formula, or a sentence with formulas in it."""

    text: str
    sentence: bool = False
    anchored: bool = False
    """Only a formula that is presented as the answer (`the answer is $…$`) is one."""


def _formula(text: str, *, alone: bool) -> _Formula | None:
    """The inside of the last box, else the text. `alone`: the text is nothing but the answer."""
    inner = last_boxed(text)
    if inner is not None:
        return _Formula(tidy(re.sub(r"\\?\$", "", inner)))
    text = text.strip()[-READ:]
    if alone:
        text = tidy(text.replace("\\$", ""))
    if alone and not _DELIMITER.search(text.strip("$")):
        return _Formula(tidy(text.strip("$")))
    return _Formula(text, sentence=True, anchored=not alone) if _DELIMITER.search(text) else None


@cache
def _configuration(anchored: bool) -> list[Any]:
    from math_verify import LatexExtractionConfig

    for name in ("math_verify.parser", "math_verify.grader"):  # they warn that the time limit is ours: it is
        logging.getLogger(name).setLevel(logging.ERROR)
    return [LatexExtractionConfig(boxed_match_priority=0, try_extract_without_anchor=not anchored)]


def _read(formula: _Formula | None, *, hundredth: bool) -> list[Any]:
    """What math-verify reads: sympy objects. Its own time limits (signals) are off: the worker's holds."""
    from math_verify import parse

    if formula is None:
        return []
    text = formula.text.replace("\u2212", "-")
    if formula.sentence:
        text = _INSIDE.sub(lambda found: f"{found[1]}{numbers(tidy(found[2]))}{found[3]}", text)
    for part in _DELIMITER.split(text) if formula.sentence else [text]:
        guard(part)
    texts = [text]
    if not formula.sentence:
        number = _PERCENT.sub("", numbers(text))
        texts = [rf"$\boxed{{{number}}}$"]
        if hundredth and _PERCENT.search(text):
            texts.append(rf"$\boxed{{\frac{{{number}}}{{100}}}}$")
    configuration = _configuration(formula.anchored)
    found: list[Any] = []
    for text in texts:
        found += parse(text, configuration, "no_fallback", "first_match", parsing_timeout=None, raise_on_error=True)
    return found


def _equal(gold: Any, answer: Any) -> bool:
    from math_verify import verify

    try:
        return bool(verify(gold, answer, timeout_seconds=None, raise_on_error=True)) and _close(gold, answer)
    except (MemoryError, RecursionError):
        raise
    except Exception:  # noqa: BLE001 - what sympy cannot compare is not equal
        return False


def _close(gold: Any, answer: Any) -> bool:
    """Whether numbers agree to six significant digits, element by element: math-verify compares to six decimals, for
    which 2⁻⁹⁸ and 2⁻⁹⁹ are the same. True for what has no numbers to compare."""
    import sympy

    if isinstance(gold, sympy.FiniteSet) and isinstance(answer, sympy.FiniteSet) and len(gold) == len(answer):
        pairs = list(zip(sorted(gold, key=_place), sorted(answer, key=_place), strict=True))
    elif isinstance(gold, sympy.Tuple | sympy.Interval) and type(gold) is type(answer):
        pairs = list(zip(gold.args, answer.args, strict=False))
    else:
        pairs = [(gold, answer)]
    return all(_close_numbers(one, other) for one, other in pairs)


def _close_numbers(gold: Any, answer: Any) -> bool:
    import sympy

    if not (isinstance(gold, sympy.Expr) and isinstance(answer, sympy.Expr) and gold.is_number and answer.is_number):
        return True
    if gold == answer or not (gold.is_finite and answer.is_finite):
        return True
    try:
        one, other = abs(gold.evalf(15)), abs(answer.evalf(15))
        return bool(abs((gold - answer).evalf(15)) <= RELATIVE * max(one, other))
    except (TypeError, ValueError, ArithmeticError):  # what sympy has no number for
        return True


def _place(value: Any) -> float:
    return float(value.evalf(15)) if value.is_real else 0.0
