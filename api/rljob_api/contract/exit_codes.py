"""Exit codes of the driver: how an attempt has ended, to the operator, to `rljob run` and to KubeRay.

The preparation and the retriever end with `USER_ERROR` on a mistake in the job, too.
"""

from enum import IntEnum
from typing import Literal

from rljob_api.contract.attempt_reasons import ATTEMPT_REASONS, Follows
from rljob_api.v1alpha1.status import AttemptReason

EndState = Literal["Succeeded", "Failed", "Suspended"]
"""`state` of a report, and of an attempt, that has ended."""


class ExitCode(IntEnum):
    """How the driver ended."""

    state: EndState
    reason: AttemptReason
    """The reason that the code alone tells; the report of a failure may have a better one."""
    meaning: str
    """For people, where the driver itself has said nothing."""

    def __new__(cls, code: int, state: EndState, reason: AttemptReason, meaning: str) -> "ExitCode":
        """`code` is the member's value."""
        member = int.__new__(cls, code)
        member._value_ = code
        member.state, member.reason, member.meaning = state, reason, meaning
        return member

    DONE = 0, "Succeeded", "Succeeded", "all steps are trained"
    FAILED = 1, "Failed", "DriverFailed", "the driver failed"
    USER_ERROR = 2, "Failed", "UserError", "the driver found a mistake in the job (exit 2)"
    FENCED = 3, "Failed", "LeaseLost", "the driver lost its Lease (exit 3)"
    SUSPENDED = 4, "Suspended", "Suspended", "the driver was suspended after a commit (exit 4)"
    UNHEALTHY = 5, "Failed", "Unhealthy", "learning went wrong (exit 5)"
    PAUSED = 6, "Suspended", "Paused", "learning went wrong; paused after a commit (exit 6)"
    ROLLED_BACK = 7, "Suspended", "RolledBack", "learning went wrong; rolled back to an earlier commit (exit 7)"

    @property
    def follows(self) -> Follows:
        """What comes after an attempt that ended so."""
        return ATTEMPT_REASONS[self.reason].follows

    @classmethod
    def known(cls, code: int | None) -> "ExitCode | None":
        """The member of this value; None for a process that was killed, or a code of another version."""
        return next((member for member in cls if member == code), None)
