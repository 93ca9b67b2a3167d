"""Reading what another version has written: as much of it as this one can read, and what that leaves out.

The processes of a job read its document so (`job_document`), and the operator the RLJob, its status and the driver's
reports.
"""

import copy
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, ValidationError

from rljob_api.manifest.document import Location

_ROUNDS = 8
"""A field that is left out may bring another error to light; more than so many are no matter of versions."""


@dataclass(frozen=True, slots=True)
class Unreadable:
    """A part of a value that its model does not take."""

    location: Location
    """Of the innermost part that is there: pydantic also names the members of unions, which are no keys."""
    unknown: bool
    """Whether it is a field that the model does not have."""
    sentence: str


def unreadable_parts(error: ValidationError, value: Any) -> list[Unreadable]:
    """What is wrong with `value`, in pydantic's order."""
    return [
        Unreadable(
            _innermost(value, its["loc"]),
            its["type"] == "extra_forbidden",
            f"{'.'.join(map(str, its['loc']))}: {its['msg']}",
        )
        for its in error.errors(include_url=False)
    ]


def without(value: Any, locations: Iterable[Location]) -> Any:
    """A copy of the value without these parts of it."""
    rest = copy.deepcopy(value)
    # The deeper first, and of a list the later: what goes must not change what another location means.
    order = list(dict.fromkeys(locations))
    order.reverse()
    order.sort(key=len, reverse=True)
    for location in order:
        holder = rest
        for step in location[:-1]:
            holder = holder[step]
        del holder[location[-1]]
    return rest


def read_partly[M: BaseModel](
    model: type[M], value: Any, may_go: Callable[[Location], bool]
) -> tuple[M | None, list[str]]:
    """The model without the parts that cannot be read and `may_go` (asked with their locations), and what is wrong with
    them, as sentences; None when others cannot be read, or too much of it."""
    rest, sentences = value, list[str]()
    for _ in range(_ROUNDS):
        try:
            return model.model_validate(rest), sentences
        except ValidationError as error:
            parts = unreadable_parts(error, rest)
        sentences += [part.sentence for part in parts]
        locations = [part.location for part in parts]
        if not all(location and may_go(location) for location in locations):
            break
        rest = without(rest, locations)
    return None, sentences


def _innermost(value: Any, location: Sequence[str | int]) -> Location:
    found: list[str | int] = []
    for step in location:
        inside = step in value if isinstance(value, dict) else isinstance(value, list) and step in range(len(value))
        if inside:
            value = value[step]
            found.append(step)
    return tuple(found)
