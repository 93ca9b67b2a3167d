"""Reading an RLJob: whole, or as much of it as this version of the operator can read.

What another version has accepted or written must not stop a job that has begun. (A definition of this version's prunes
fields that it does not know; values of fields that it knows stay as they are.)
"""

from pydantic import ValidationError
from rljob_api.contract.other_versions import read_partly, unreadable_parts
from rljob_api.v1alpha1.job import RLJob
from rljob_api.v1alpha1.status import RLJobStatus

from rljob_operator.kube.objects import Obj

_LIFE = frozenset({"attempt", "attempts", "state", "number", "rayJob"})
"""What a status cannot do without: guessed wrongly, two attempts would run."""


def whole(raw: Obj) -> tuple[RLJob | None, list[str]]:
    """The job, or None and what is wrong with it, as sentences."""
    try:
        return RLJob.model_validate(raw), []
    except ValidationError as error:
        return None, [part.sentence for part in unreadable_parts(error, raw)]


def readable(raw: Obj) -> tuple[RLJob | None, list[str]]:
    """The job without what cannot be read of it (there the defaults hold), and what that is, as sentences; None when
    too much of it cannot be read."""
    return read_partly(RLJob, raw, lambda path: len(path) > 1)


def status_of(job: Obj) -> RLJobStatus:
    """The status as a model, without what another version of the operator has written and this one cannot read.

    Raises ValueError when that is part of what decides about attempts.
    """
    raw = job.get("status") or {}
    status, unread = read_partly(RLJobStatus, raw, lambda path: path[-1] not in _LIFE and not isinstance(path[-1], int))
    if status is None:
        raise ValueError(f"status cannot be read: {'; '.join(unread)}")
    return status
