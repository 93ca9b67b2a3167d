"""DeepScaleR's mathematical reward (Luo et al. 2025), which slime trains with: strings first, sympy second.

The equivalence rules are those of its two graders (Hendrycks' MATH normalisation; the sympy grader that goes back to
PRM800K), written anew: expressions are read by `expression.parse`, which runs no code.
"""

import re
from typing import Any

from rljob_trainer.rewards import expression
from rljob_trainer.rewards.guard import guard
from rljob_trainer.rewards.latex import plain
from rljob_trainer.rewards.notation import decimal, numbers, same_with_base, tidy, whole, without_spaces
from rljob_trainer.rewards.text import THINK_END, is_cut_off, label_text, last_boxed, without_end_tokens

RESPONSE_MARK = "###Response"
_UNITS = (
    *("degree", "centimeter", "cm", "meter", "mile", "second", "minute", "hour", "day", "week", "month", "year"),
    *("foot", "feet", "inch", "yard"),
)
_UNIT = re.compile(
    r"(?<=[0-9})\].])(?:\s|\\[,;:! ])*(\\(?:text|mathrm|mbox|rm)\{\s*)?"
    rf"(?:{'|'.join(_UNITS)})(?:es)?s?(?![A-Za-z])(?(1)\s*\}}) *(?:\^\{{?[0-9]+\}}?)?"
)
"""A unit counts behind a number alone: as an answer by itself, a day is no hour."""
_MULTIPLES = (("trillion", "*10^12"), ("billion", "*10^9"), ("million", "*10^6"))
_TEXT = re.compile(r"\\text\{(.+?)\}\Z")
_FRACTION = re.compile(r"-?[0-9]+/0*[1-9][0-9]*\Z")
_REFUSED = re.compile(r"\^\{|\^\(|\^[0-9]+\^|\^[0-9][0-9]")
_BRACKETS = "()[]⦃⦄"
"""Of tuples, intervals and sets; those of sets stand for `\\{`, `\\}` while braces that only group are removed."""
_ABOUT_WHOLE = 1e-7
_LETTERS = 2
"""Distinct letters of an expression that sympy is asked about; more are words."""


def deepscaler(response: str, label: Any) -> float:
    """1.0 when the boxed answer after the thinking equals the label, else 0.0.

    - The solution is what follows the last `</think>`, else the first `###Response`; without either it scores 0.
    - The answer is the last `\\boxed{…}` of the solution; of a label with a box, too.
    - Equal are answers whose normal forms are the same text (`mathd_form`), or that `equivalent` finds equal.
    """
    gold, text = label_text(label, "deepscaler"), without_end_tokens(response)
    _, found, solution = text.rpartition(THINK_END)
    if not found:
        _, found, solution = text.partition(RESPONSE_MARK)
    answer = last_boxed(solution) if found and not is_cut_off(solution) else None
    truth = last_boxed(gold) if "boxed" in gold or "fbox" in gold else gold
    if not answer or not truth:
        return 0.0
    return float(mathd_form(answer) == mathd_form(truth) or equivalent(guard(answer), guard(truth)))


def mathd_form(answer: str) -> str:
    """An answer in the normal form of the MATH benchmark (Hendrycks et al. 2021): one notation for fractions and
    roots, without spaces, units in `\\text{ …}`, degrees, dollars, percent signs, `\\left`, and a leading `x =`."""
    text = answer.strip()
    if match := _TEXT.match(text):
        text = match[1].strip()
    for removed in ("\n", "\\!", "\\left", "\\right", "^{\\circ}", "^\\circ", "\\$", "\\%", "%"):
        text = text.replace(removed, "")
    text = text.replace("\\\\", "\\").replace("tfrac", "frac").replace("dfrac", "frac").partition("\\text{ ")[0]
    text = text.replace(" .", " 0.").replace("{.", "{0.")
    if text.startswith("."):
        text = f"0{text}"
    text = _value(text)
    text = without_spaces(re.sub(r"\\sqrt([^{\s])", r"\\sqrt{\1}", text))
    text = re.sub(r"\\frac([^{])([^{])", r"\\frac{\1}{\2}", text)
    text = re.sub(r"\\frac([^{])\{", r"\\frac{\1}{", text)
    if text == "0.5":
        return "\\frac{1}{2}"
    return re.sub(r"\A(-?(?:0|[1-9]\d*))/(-?(?:0|[1-9]\d*))\Z", r"\\frac{\1}{\2}", text)


def _value(text: str) -> str:
    """What stands behind a leading `x =`."""
    name, equals, value = text.partition("=")
    return value if equals and "=" not in value and len(name.strip()) <= 2 else text


def equivalent(answer: str, truth: str) -> bool:
    """Whether two answers are equal by value.

    Tuples, intervals and sets element by element, in their brackets. Two fractions must be the same fraction (an answer
    is to be reduced); an integer is only equal to an integer in the same digits; everything else is equal when sympy
    simplifies the difference to 0, which is tried for at most two letters and one-digit exponents.
    """
    given, gold = _form(answer), _form(truth)
    if given == gold:
        return True
    if not given:
        return False
    if (same := same_with_base(tidy(answer), tidy(truth))) is not None:
        return same
    elements, golds = _elements(given), _elements(gold)
    if len(elements) != len(golds) or (len(golds) > 1 and (given[0], given[-1]) != (gold[0], gold[-1])):
        return False
    return all(_same(one, other) for one, other in zip(elements, golds, strict=True))


def _form(answer: str) -> str:
    """An answer as plain text: no units, no LaTeX, thousands without separators, `7 3/4` as `31/4`, lower case."""
    text = tidy(answer)
    if match := _TEXT.match(text):
        text = match[1]
    for before, after in (
        *(("\\%", ""), ("%", ""), ("\\$", ""), ("$", ""), (" or ", " , "), (" and ", " , ")),
        *_MULTIPLES,
    ):
        text = text.replace(before, after)
    text = re.sub(r"\^ *\{?\\circ\}?", "", _UNIT.sub("", text)).strip()
    if text.startswith("{") and text.endswith("}"):
        text = text[1:-1]
    text = plain(numbers(_value(text)).replace("\\{", "⦃").replace("\\}", "⦄"))
    text = without_spaces(text.replace("{", "").replace("}", "")).lower()
    return _integer(text) or text


def _integer(text: str) -> str | None:
    """The digits of a whole number (`42.0`, `1,000`, `1e3`), or None."""
    if (digits := whole(text)) is not None:
        return digits
    number = decimal(text)
    if number is None:
        return None
    return str(round(number)) if 1 <= abs(number) < 1e15 and abs(number - round(number)) <= _ABOUT_WHOLE else None


def _elements(text: str) -> list[str]:
    inner = text[1:-1]
    if len(text) > 2 and text[0] in _BRACKETS and text[-1] in _BRACKETS and not set(inner) & set(_BRACKETS):
        return [element.strip() for element in inner.split(",")]
    return [text]


def _same(given: str, gold: str) -> bool:
    if _FRACTION.match(given) and _FRACTION.match(gold):
        return given == gold
    if (_integer(given) is None) != (_integer(gold) is None):
        return False
    difference = f"({gold})-({given})"
    letters = {character for character in re.sub("sqrt|frac", "", difference) if character.isalpha()}
    if len(letters) > _LETTERS or _REFUSED.search(difference):
        return False
    import sympy

    try:
        value = expression.parse(difference)
        return bool(value == 0 or sympy.simplify(value) == 0)
    except (ValueError, ArithmeticError, TypeError):  # no expression, or none that has a value: not equal
        return False
