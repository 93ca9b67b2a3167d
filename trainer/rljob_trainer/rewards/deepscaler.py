"""DeepScaleR's mathematical reward (Luo et al. 2025), which slime trains with: strings first, sympy second.

The equivalence rules are those of its two graders (Hendrycks' MATH normalisation; the sympy grader that goes back to
PRM800K), written anew: expressions are read by `expression.parse`, which runs no code.
"""

import re
from typing import Any

from rljob_trainer.rewards import expression
from rljob_trainer.rewards.guard import guard
from rljob_trainer.rewards.latex import plain
from rljob_trainer.rewards.text import THINK_END, label_text, last_boxed, without_end_tokens

RESPONSE_MARK = "###Response"
_UNITS = (
    *("degree", "centimeter", "cm", "meter", "mile", "second", "minute", "hour", "day", "week", "month", "year"),
    *("foot", "feet", "inch", "yard"),
)
_UNIT = re.compile(rf"(?:{'|'.join(_UNITS)})(?:es)?s? *(?:\^[0-9]+)?")
_MULTIPLES = (("trillion", "*10^12"), ("billion", "*10^9"), ("million", "*10^6"))
_TEXT = re.compile(r"\\text\{(.+?)\}\Z")
_COMMA = re.compile(r"(?<=\d),(?=\d{3}(?:\D|\Z))")
_FRACTION = re.compile(r"-?[0-9]+/0*[1-9][0-9]*\Z")
_REFUSED = re.compile(r"\^\{|\^\(|\^[0-9]+\^|\^[0-9][0-9]")
_WHOLE = re.compile(r"([-+]?\d+)(?:\.0*)?\Z")
_MOST_DIGITS = 4000
_BRACKETS = "()[]"
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
    answer = last_boxed(solution) if found else None
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
    name, equals, value = text.partition("=")
    if equals and "=" not in value and len(name) <= 2:
        text = value
    text = re.sub(r"\\sqrt([^{\s])", r"\\sqrt{\1}", text).replace(" ", "")
    text = re.sub(r"\\frac([^{])([^{])", r"\\frac{\1}{\2}", text)
    text = re.sub(r"\\frac([^{])\{", r"\\frac{\1}{", text)
    if text == "0.5":
        return "\\frac{1}{2}"
    return re.sub(r"\A(-?(?:0|[1-9]\d*))/(-?(?:0|[1-9]\d*))\Z", r"\\frac{\1}{\2}", text)


def equivalent(answer: str, truth: str) -> bool:
    """Whether two answers are equal by value.

    Tuples and intervals element by element, in their brackets. Two fractions must be the same fraction (an answer is
    to be reduced); an integer is only equal to an integer in the same digits; everything else is equal when sympy
    simplifies the difference to 0, which is tried for at most two letters and one-digit exponents.
    """
    given, gold = _form(answer), _form(truth)
    if given == gold:
        return True
    if not given:
        return False
    elements, golds = _elements(given), _elements(gold)
    if len(elements) != len(golds) or (len(golds) > 1 and (given[0], given[-1]) != (gold[0], gold[-1])):
        return False
    return all(_same(one, other) for one, other in zip(elements, golds, strict=True))


def _form(answer: str) -> str:
    """An answer as plain text: no units, no LaTeX, thousands without separators, `7 3/4` as `7+3/4`, lower case."""
    text = answer.strip().replace("\u2212", "-")
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
    text = plain(re.sub(r",\\! *", "", text))
    text = re.sub(r"- *", "-", text)
    text = re.sub(r"([0-9]) +([0-9])", r"\1+\2", text).replace(" ", "").replace("{", "").replace("}", "").lower()
    return _integer(text) or text


def _integer(text: str) -> str | None:
    """The digits of a whole number (`42.0`, `1,000`, `1e3`), or None."""
    text = _COMMA.sub("", text)
    if match := _WHOLE.match(text):
        return str(int(match[1])) if len(match[1]) < _MOST_DIGITS else match[1]
    try:
        number = float(text)
    except ValueError:
        return None
    return str(round(number)) if abs(number) < 1e15 and abs(number - round(number)) <= 1e-7 else None


def _elements(text: str) -> list[str]:
    text = _COMMA.sub("", text)
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
