"""Plain arithmetic and algebra to sympy, without `eval`: what a model writes is never run as code."""

import re
from typing import Any

from rljob_trainer.rewards.guard import guard

_TOKEN = re.compile(r"\s*(?:(\d+\.?\d*|\.\d+)|(sqrt|pi|inf|[A-Za-z])|(\*\*|[-+*/^()!]))")
_MOST_DIGITS = 500


def parse(text: str) -> Any:
    """The sympy expression of a text of numbers, letters, `+ - * / ^ ( )`, `sqrt`, `pi`, `inf`; `2x` multiplies.

    Decimals become fractions. Raises ValueError (TooLargeError for what would be too large) on anything else.
    """
    return _Parser(_tokens(guard(text))).whole()


def _tokens(text: str) -> list[str]:
    tokens, place, text = [], 0, text.rstrip()
    while place < len(text):
        match = _TOKEN.match(text, place)
        if match is None:
            raise ValueError(f"{text[place]!r} is not understood")
        tokens.append(match[1] or match[2] or match[3])
        place = match.end()
    return tokens


class _Parser:
    """Recursive descent: sum, product, sign, power, atom. `guard` has bounded the depth."""

    def __init__(self, tokens: list[str]) -> None:
        import sympy

        self._sympy, self._tokens, self._place = sympy, tokens, 0

    def whole(self) -> Any:
        value = self._sum()
        if self._place < len(self._tokens):
            raise ValueError(f"{self._tokens[self._place]!r} is not expected")
        return value

    def _next(self) -> str:
        return self._tokens[self._place] if self._place < len(self._tokens) else ""

    def _take(self, *wanted: str) -> str:
        token = self._next()
        if token in wanted:
            self._place += 1
            return token
        return ""

    def _sum(self) -> Any:
        value = self._product()
        while sign := self._take("+", "-"):
            term = self._product()
            value = value + term if sign == "+" else value - term
        return value

    def _product(self) -> Any:
        value = self._signed()
        while True:
            sign = self._take("*", "/")
            if not sign and (not self._next() or self._next() in "+-)^**!"):
                return value
            factor = self._signed() if sign else self._power()
            value = value / factor if sign == "/" else value * factor

    def _signed(self) -> Any:
        negative = False
        while sign := self._take("+", "-"):
            negative ^= sign == "-"
        value = self._power()
        return -value if negative else value

    def _power(self) -> Any:
        base = self._atom()
        if not self._take("^", "**"):
            return base
        exponent = self._signed()
        if base.is_number and exponent.is_number and not self._small(base, exponent):
            raise ValueError("a power that is too large to verify")
        return base**exponent

    def _small(self, base: Any, exponent: Any) -> bool:
        return bool(exponent.is_finite) and float(self._sympy.Abs(exponent)) * len(str(base)) < _MOST_DIGITS

    def _atom(self) -> Any:
        token, self._place = self._next(), self._place + 1
        if token == "(":
            value = self._sum()
            if not self._take(")"):
                raise ValueError("a bracket is not closed")
            return value
        if token == "sqrt":
            return self._sympy.sqrt(self._atom())
        if token == "pi":
            return self._sympy.pi
        if token == "inf":
            return self._sympy.oo
        if token[:1].isdigit() or token[:1] == ".":
            return self._sympy.Rational(token)
        if token.isalpha():
            return self._sympy.Symbol(token)
        raise ValueError(f"{token or 'the end'!r} is not expected")
