"""Conditions and values over an object's fields, written once and read in two languages.

`field("minReplicas") <= field("maxReplicas")` is an expression: a tree whose every node has its text in CEL, for the
CRD, and its value in Python, for a model of `v1alpha1`. Comparisons and arithmetic are Python's operators; `&`, `|` and
`~` are CEL's `&&`, `||` and `!`, and bind more tightly than a comparison, which therefore stands in parentheses.
"""

import operator
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache
from typing import Any

from pydantic.alias_generators import to_snake

_CHOICE, _OR, _AND, _RELATION, _SUM, _PRODUCT, _UNARY, _ATOM = range(8)
"""How tightly the operators of CEL bind, loosest first."""


@dataclass(frozen=True, slots=True, eq=False)
class Expression:
    """A condition or a value over the fields of one object, `self` in CEL."""

    cel: str
    value: Callable[[Any], Any]
    """The value for an object of `v1alpha1`."""
    binds: int = _ATOM
    """How tightly the outermost operator of `cel` binds."""

    def __bool__(self) -> bool:
        raise TypeError(f"{self.cel} has no truth of its own: use & | ~, and put comparisons in parentheses")

    def __eq__(self, other: object) -> "Expression":  # type: ignore[override]
        return _binary("==", _RELATION, operator.eq, self, other)

    def __ne__(self, other: object) -> "Expression":  # type: ignore[override]
        return _binary("!=", _RELATION, operator.ne, self, other)

    __hash__ = None  # type: ignore[assignment]

    def __lt__(self, other: object) -> "Expression":
        return _binary("<", _RELATION, operator.lt, self, other)

    def __le__(self, other: object) -> "Expression":
        return _binary("<=", _RELATION, operator.le, self, other)

    def __gt__(self, other: object) -> "Expression":
        return _binary(">", _RELATION, operator.gt, self, other)

    def __ge__(self, other: object) -> "Expression":
        return _binary(">=", _RELATION, operator.ge, self, other)

    def __add__(self, other: object) -> "Expression":
        return _binary("+", _SUM, operator.add, self, other)

    def __mul__(self, other: object) -> "Expression":
        return _binary("*", _PRODUCT, operator.mul, self, other)

    def __rmul__(self, other: object) -> "Expression":
        return _binary("*", _PRODUCT, operator.mul, _expression(other), self)

    def __floordiv__(self, other: object) -> "Expression":
        """The whole quotient of two numbers that are not negative: below 0, CEL rounds the other way."""
        return _binary("/", _PRODUCT, operator.floordiv, self, other)

    def __mod__(self, other: object) -> "Expression":
        return _binary("%", _PRODUCT, operator.mod, self, other)

    def __and__(self, other: "Expression") -> "Expression":
        left, right = self.value, other.value
        return Expression(
            f"{_within(self, _AND)} && {_within(other, _AND)}", lambda owner: left(owner) and right(owner), _AND
        )

    def __or__(self, other: "Expression") -> "Expression":
        left, right = self.value, other.value
        return Expression(
            f"{_within(self, _OR)} || {_within(other, _OR)}", lambda owner: left(owner) or right(owner), _OR
        )

    def __invert__(self) -> "Expression":
        value = self.value
        return Expression(f"!{_within(self, _UNARY)}", lambda owner: not value(owner), _UNARY)

    def implies(self, other: "Expression") -> "Expression":
        """Whether `other` holds, where this does."""
        return ~self | other

    def one_of(self, *values: str) -> "Expression":
        """Whether this is one of some strings."""
        value = self.value
        listed = ", ".join(map(_literal, values))
        return Expression(f"{_within(self, _SUM)} in [{listed}]", lambda owner: value(owner) in values, _RELATION)

    def starts_with(self, prefix: str) -> "Expression":
        """Whether this string begins with `prefix`."""
        value = self.value
        return Expression(
            f"{_within(self, _ATOM)}.startsWith({_literal(prefix)})", lambda owner: value(owner).startswith(prefix)
        )


@cache
def getters(path: str) -> tuple[Callable[[Any], Any], ...]:
    """What reads the models' attributes along a dotted path in the API's spelling."""
    return tuple(operator.attrgetter(to_snake(part)) for part in path.split("."))


def field(path: str, of: str = "self") -> Expression:
    """The field at a dotted path of `of`; None in Python where it, or what it is within, is absent."""
    steps = getters(path)

    def value(owner: Any) -> Any:
        for step in steps:
            if owner is None:
                return None
            owner = step(owner)
        return owner

    return Expression(f"{of}.{path}", value)


def has(path: str, of: str = "self") -> Expression:
    """Whether the field at `path` is given. What it is within must be: `has("data") & has("data.train")`.

    The one difference between the languages: an empty map is given in CEL, which cannot measure a map of any values.
    """
    value = field(path).value
    return Expression(f"has({of}.{path})", lambda owner: value(owner) not in (None, {}))


def filled(path: str) -> Expression:
    """Whether the list or map of typed values at `path` has an entry."""
    value = field(path).value
    return Expression(f"has(self.{path}) && self.{path}.size() > 0", lambda owner: bool(value(owner)), _AND)


def choose(condition: Expression, then: Expression | str | int, otherwise: Expression | str | int) -> Expression:
    """`then` where the condition holds, else `otherwise`."""
    yes, no = _expression(then), _expression(otherwise)
    return Expression(
        f"{_within(condition, _OR)} ? {_within(yes, _OR)} : {_within(no, _CHOICE)}",
        lambda owner: yes.value(owner) if condition.value(owner) else no.value(owner),
        _CHOICE,
    )


def how_many(conditions: Iterable[Expression]) -> Expression:
    """How many of the conditions hold."""
    asked = tuple(conditions)
    listed = ", ".join(condition.cel for condition in asked)
    return Expression(
        f"[{listed}].filter(given, given).size()",
        lambda owner: sum(bool(condition.value(owner)) for condition in asked),
    )


def total_length(path: str) -> Expression:
    """Characters of all the strings of the map at `path` together."""
    value = field(path).value
    return Expression(
        f"self.{path}.map(name, self.{path}[name].size()).sum()", lambda owner: sum(map(len, value(owner).values()))
    )


def all_differ(path: str, key: Callable[[str], Expression]) -> Expression:
    """Whether the elements of the list at `path` have keys that differ; `key` is given the element's name in CEL."""
    listed, of_element = field(path), key("a").value
    same = key("a") == key("b")

    def value(owner: Any) -> bool:
        keys = [of_element(element) for element in listed.value(owner)]
        return len(keys) == len(set(keys))

    return Expression(f"{listed.cel}.all(a, {listed.cel}.exists_one(b, {same.cel}))", value)


def _binary(sign: str, binds: int, operate: Callable[[Any, Any], Any], left: Expression, other: object) -> Expression:
    right = _expression(other)
    cel = f"{_within(left, binds + (binds == _RELATION))} {sign} {_within(right, binds + 1)}"
    return Expression(cel, lambda owner: operate(left.value(owner), right.value(owner)), binds)


def _expression(value: object) -> Expression:
    return value if isinstance(value, Expression) else Expression(_literal(value), lambda _: value)


def _literal(value: object) -> str:
    """A constant in CEL."""
    if isinstance(value, str):
        return f"'{value}'"
    return str(value).lower() if isinstance(value, bool) else repr(value)


def _within(part: Expression, binds: int) -> str:
    """The text of an operand, in parentheses where an operator of this strength would tear it apart."""
    return part.cel if part.binds >= binds else f"({part.cel})"
