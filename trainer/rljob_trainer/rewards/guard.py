"""Expressions that no verifier should try: they would take all memory, or until the end of days."""

import math
import re

LONGEST = 2000
"""Characters of an expression."""
DEEPEST = 60
"""Brackets within brackets."""
LARGEST_DIGITS = 3000.0
"""Decimal digits of a power of numbers. (CPython itself refuses to print integers of more than 4300.)"""

_NUMBER = r"\d+(?:\.\d+)?"
_POWER = re.compile(rf"({_NUMBER})[\s)}}]*(?:\^|\*\*)")
_EXPONENT = re.compile(rf"[\s({{+]*({_NUMBER})[\s)}}]*(\^|\*\*)?")
_FACTORIAL = re.compile(r"(\d+)[\s)}]*(?:!|\\factorial)")


class TooLargeError(ValueError):
    """An expression that is refused unseen."""


def guard(text: str) -> str:
    """The text itself. Raises TooLargeError for one that is too long, too deep, or whose numbers are too large.

    It reads towers of powers (`10^10^10`, `2^{2^{99}}`) and factorials of plain numbers; what hides its size in
    another way meets the limits on time and memory of the worker.
    """
    if len(text) > LONGEST:
        raise TooLargeError(f"an expression of {len(text)} characters is not verified (at most {LONGEST})")
    depth = deepest = 0
    for character in text:
        depth += (character in "([{") - (character in ")]}")
        deepest = max(deepest, depth)
    if deepest > DEEPEST:
        raise TooLargeError(f"an expression {deepest} brackets deep is not verified (at most {DEEPEST})")
    for power in _POWER.finditer(text):
        digits = _exponent(text, power.end()) * max(math.log10(max(float(power[1]), 1.0)), 0.0)
        if digits > LARGEST_DIGITS:
            raise TooLargeError(f"a power of {_named(digits)} digits is not verified")
    for factorial in _FACTORIAL.finditer(text):
        if len(factorial[1]) > 4 or int(factorial[1]) > 1000:
            raise TooLargeError(f"the factorial of {factorial[1][:12]} is not verified")
    return text


def _exponent(text: str, place: int) -> float:
    """The value of the tower of numbers that begins at `place`; 0 where something else than a number stands there."""
    values: list[float] = []
    while (match := _EXPONENT.match(text, place)) is not None:
        values.append(float(match[1]) if len(match[1]) < 300 else math.inf)
        place = match.end()
        if match[2] is None:
            break
    result = 1.0 if values else 0.0
    for value in reversed(values):
        try:
            result = value**result
        except OverflowError:
            result = math.inf
    return result


def _named(digits: float) -> str:
    return "endlessly many" if math.isinf(digits) else f"{digits:.3g}"
