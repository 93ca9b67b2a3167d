"""Reading an RLJob: whole, or as much of it as this version of the operator can read.

What another version has accepted or written must not stop a job that has begun. (A definition of this version's prunes
fields that it does not know; values of fields that it knows stay as they are.)
"""

import copy
from collections.abc import Callable, Sequence
from typing import Any

from pydantic import BaseModel, ValidationError
from rljob_trainer.config.job import RLJob
from rljob_trainer.config.status import RLJobStatus

from rljob_operator.objects import Obj

_ROUNDS = 8
"""A field that is left out may bring another error to light; more than so many are no matter of versions."""
_LIFE = frozenset({"attempt", "attempts", "state", "number", "rayJob"})
"""What a status cannot do without: guessed wrongly, two attempts would run."""


def whole(raw: Obj) -> tuple[RLJob | None, list[str]]:
    """The job, or None and what is wrong with it, as sentences."""
    try:
        return RLJob.model_validate(raw), []
    except ValidationError as error:
        return None, _sentences(error)


def readable(raw: Obj) -> tuple[RLJob | None, list[str]]:
    """The job without what cannot be read of it (there the defaults hold), and what that is, as sentences; None when
    too much of it cannot be read."""
    return _readable(RLJob, raw, lambda path: len(path) > 1)


def status_of(job: Obj) -> RLJobStatus:
    """The status as a model, without what another version of the operator has written and this one cannot read.

    Raises ValueError when that is part of what decides about attempts.
    """
    raw = job.get("status") or {}
    status, unread = _readable(RLJobStatus, raw, lambda path: path[-1] not in _LIFE and not isinstance(path[-1], int))
    if status is None:
        raise ValueError(f"status cannot be read: {'; '.join(unread)}")
    return status


def _readable[M: BaseModel](
    model: type[M], raw: Obj, may_go: Callable[[Sequence[str | int]], bool]
) -> tuple[M | None, list[str]]:
    rest, unread = raw, list[str]()
    for _ in range(_ROUNDS):
        try:
            return model.model_validate(rest), unread
        except ValidationError as error:
            rest = copy.deepcopy(rest)
            unread += _sentences(error)
            dropped = [_drop(rest, its["loc"], may_go) for its in error.errors()]
            if not all(dropped):
                break
    return None, unread


def _sentences(error: ValidationError) -> list[str]:
    return [f"{'.'.join(map(str, its['loc']))}: {its['msg']}" for its in error.errors()]


def _drop(tree: Obj, location: Sequence[str | int], may_go: Callable[[Sequence[str | int]], bool]) -> bool:
    """Leave out the innermost of a location that is there; whether anything was. (A location also names the members of
    unions, which are no keys.)"""
    found: Any = tree
    where: Any = None
    path: list[str | int] = []
    for step in location:
        inside = step in found if isinstance(found, dict) else isinstance(found, list) and step in range(len(found))
        if inside:
            where, found = found, found[step]
            path.append(step)
    if not path or not may_go(path):
        return False
    del where[path[-1]]
    return True
