"""Events: what changed from one status to the next, said once."""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass

from rljob_api.contract.exit_codes import ExitCode
from rljob_api.contract.reasons import EVENTS, WARNINGS, Reason
from rljob_api.v1alpha1.status import AttemptStatus, RLJobStatus

from rljob_operator.state.conditions import find


@dataclass(frozen=True)
class StatusEvent:
    """An Event to be written."""

    reason: Reason
    message: str

    @property
    def kind(self) -> str:
        """Normal or Warning."""
        return "Warning" if self.reason in WARNINGS else "Normal"

    def name(self, job: str, uid: str, moment: str) -> str:
        """A name that the same event, written again after a crash, has too."""
        text = f"{uid}/{self.reason}/{self.message}/{moment}"
        return f"{job}.{hashlib.sha256(text.encode()).hexdigest()[:16]}"


def events_between(old: RLJobStatus, new: RLJobStatus) -> list[StatusEvent]:
    """What happened between two statuses of a job; what two conditions say alike, once."""
    return list(dict.fromkeys((*_attempts(old, new), *_conditions(old, new))))


def _attempts(old: RLJobStatus, new: RLJobStatus) -> Iterator[StatusEvent]:
    before = {attempt.number: attempt for attempt in old.attempts}
    for attempt in new.attempts:
        earlier = before.get(attempt.number)
        if earlier is None:
            yield StatusEvent(Reason.ATTEMPT_STARTED, _started(attempt))
        if earlier is None or earlier.state != attempt.state:
            if attempt.state == "Failed":
                yield StatusEvent(Reason.ATTEMPT_FAILED, _ended(attempt))
            elif attempt.state == "Suspended" and attempt.exit_code == ExitCode.ROLLED_BACK:
                yield StatusEvent(Reason.ROLLED_BACK, _ended(attempt))
            elif attempt.state == "Suspended":
                yield StatusEvent(Reason.ATTEMPT_SUSPENDED, _ended(attempt))


def _ended(attempt: AttemptStatus) -> str:
    reason = f" ({attempt.reason})" if attempt.reason else ""
    return f"attempt {attempt.number}{reason}: {attempt.message}"


def _started(attempt: AttemptStatus) -> str:
    origin = f"resuming at step {attempt.start_step}" if attempt.start_step else "from the beginning"
    return f"attempt {attempt.number} starts {origin} as RayJob {attempt.ray_job}"


def _conditions(old: RLJobStatus, new: RLJobStatus) -> Iterator[StatusEvent]:
    for condition in new.conditions:
        earlier = find(old, condition.type)
        reason = Reason(condition.reason)
        if reason in EVENTS and (earlier is None or (earlier.status, earlier.reason) != (condition.status, reason)):
            yield StatusEvent(reason, condition.message or f"{condition.type} is {condition.status}")
