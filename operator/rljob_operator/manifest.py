"""Reading an RLJob's manifest: whole, or as much of it as this version of the operator can read."""

import copy
from collections.abc import Sequence
from typing import Any

from pydantic import ValidationError
from rljob_trainer.config.job import RLJob

from rljob_operator.objects import Obj

_ROUNDS = 8
"""A field that is left out may bring another error to light; more than so many are no matter of versions."""


def whole(raw: Obj) -> tuple[RLJob | None, list[str]]:
    """The job, or None and what is wrong with it, as sentences."""
    try:
        return RLJob.model_validate(raw), []
    except ValidationError as error:
        return None, _sentences(error)


def readable(raw: Obj) -> tuple[RLJob | None, list[str]]:
    """The job without what cannot be read of it (there the defaults hold), and what that is, as sentences; None when
    too much of it cannot be read."""
    rest, unread = copy.deepcopy(raw), list[str]()
    for _ in range(_ROUNDS):
        try:
            return RLJob.model_validate(rest), unread
        except ValidationError as error:
            unread += _sentences(error)
            dropped = [_drop(rest, its["loc"]) for its in error.errors()]
            if not all(dropped):
                break
    return None, unread


def _sentences(error: ValidationError) -> list[str]:
    return [f"{'.'.join(map(str, its['loc']))}: {its['msg']}" for its in error.errors()]


def _drop(tree: Obj, location: Sequence[str | int]) -> bool:
    """Leave out the innermost of a location that is there below `spec`; whether anything was. (A location also names
    the members of unions, which are no keys.)"""
    found: Any = tree
    where: Any = None
    key: str | int = ""
    for step in location:
        inside = step in found if isinstance(found, dict) else isinstance(found, list) and step in range(len(found))
        if inside:
            where, key, found = found, step, found[step]
    if where is None or where is tree:  # never the whole spec
        return False
    del where[key]
    return True
