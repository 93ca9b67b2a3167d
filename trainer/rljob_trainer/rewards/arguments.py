"""Reading `spec.reward.functions[].args` of built-in rewards."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from rljob.types import Sample
from rljob_api.errors import UserError

Scorer = Callable[[Sample], Any]
"""What a reward makes of a sample: a number."""


class Arguments:
    """Takes arguments one by one; `done` refuses what is left. Every mistake is a UserError that names the field."""

    def __init__(self, args: Mapping[str, Any], field: str, reward: str) -> None:
        self._left, self._field, self._reward = dict(args), field, reward
        self._known: list[str] = []

    def number(self, name: str, default: float | None = None) -> float:
        """A number; required without a default."""
        value = self._take(name, default)
        if value is None:
            raise UserError(f"{self._field}.{name} is required")
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise UserError(f"{self._field}.{name}: {value!r} is not a number")
        return float(value)

    def wrong(self, name: str, what: str) -> UserError:
        """The error for a value that is no good; `what` says why."""
        return UserError(f"{self._field}.{name}: {what}")

    def integer(self, name: str, default: int, least: int = 1) -> int:
        """A whole number of at least `least`."""
        value = self._take(name, default)
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise UserError(f"{self._field}.{name}: {value!r} is not a whole number of at least {least}")
        return value

    def flag(self, name: str, default: bool) -> bool:
        """true or false."""
        value = self._take(name, default)
        if not isinstance(value, bool):
            raise UserError(f"{self._field}.{name}: {value!r} is neither true nor false")
        return value

    def choice(self, name: str, values: Sequence[str]) -> str:
        """One of `values`; the first by default."""
        value = self._take(name, values[0])
        if value not in values:
            raise UserError(f"{self._field}.{name}: {value!r} is none of {', '.join(values)}")
        return str(value)

    def done(self) -> None:
        """Refuse arguments that nobody has taken."""
        if self._left:
            known = f"it takes {', '.join(self._known)}" if self._known else "it takes none"
            raise UserError(f"{self._field}: {self._reward!r} has no argument {min(self._left)!r}", hint=known)

    def _take(self, name: str, default: Any) -> Any:
        self._known.append(name)
        return self._left.pop(name, default)
