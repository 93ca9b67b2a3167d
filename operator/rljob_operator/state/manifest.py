"""Reading an RLJob: whole, or as much of it as this version of the operator can read.

What another version has accepted or written must not stop a job that has begun. (A definition of this version's prunes
fields that it does not know; values of fields that it knows stay as they are.)
"""

import copy
from collections.abc import Callable, Sequence
from typing import Any

from pydantic import BaseModel, ValidationError
from rljob_api.v1alpha1.job import RLJob
from rljob_api.v1alpha1.status import RLJobStatus

from rljob_operator.kube.objects import Obj

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
    return readable_part(RLJob, raw, lambda path: len(path) > 1)


def status_of(job: Obj) -> RLJobStatus:
    """The status as a model, without what another version of the operator has written and this one cannot read.

    Raises ValueError when that is part of what decides about attempts.
    """
    raw = job.get("status") or {}
    status, unread = readable_part(
        RLJobStatus, raw, lambda path: path[-1] not in _LIFE and not isinstance(path[-1], int)
    )
    if status is None:
        raise ValueError(f"status cannot be read: {'; '.join(unread)}")
    return status


def readable_part[M: BaseModel](
    model: type[M], raw: Any, may_go: Callable[[Sequence[str | int]], bool]
) -> tuple[M | None, list[str]]:
    """The model without the parts that cannot be read and `may_go` (asked with their paths), and what is wrong with
    them, as sentences; None when others cannot be read, or too much of it."""
    rest, unread = raw, list[str]()
    for _ in range(_ROUNDS):
        try:
            return model.model_validate(rest), unread
        except ValidationError as error:
            rest = copy.deepcopy(rest)
            unread += _sentences(error)
            paths = {_innermost(rest, its["loc"]): None for its in error.errors()}
            if not all(path and may_go(path) for path in paths):
                break
            # The deeper first, and of a list the later: what goes must not change what another path means.
            order = list(paths)
            order.reverse()
            order.sort(key=len, reverse=True)
            for path in order:
                _drop(rest, path)
    return None, unread


def _sentences(error: ValidationError) -> list[str]:
    return [f"{'.'.join(map(str, its['loc']))}: {its['msg']}" for its in error.errors()]


def _innermost(tree: Any, location: Sequence[str | int]) -> tuple[str | int, ...]:
    """The path of the innermost part of a location that is there. (A location also names the members of unions, which
    are no keys.)"""
    path: list[str | int] = []
    for step in location:
        inside = step in tree if isinstance(tree, dict) else isinstance(tree, list) and step in range(len(tree))
        if inside:
            tree = tree[step]
            path.append(step)
    return tuple(path)


def _drop(tree: Any, path: tuple[str | int, ...]) -> None:
    for step in path[:-1]:
        tree = tree[step]
    del tree[path[-1]]
