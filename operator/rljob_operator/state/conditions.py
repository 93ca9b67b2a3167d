"""Conditions as KEP-1623 has them: set by type; the transition time moves only when the status does."""

from collections.abc import Iterable
from datetime import datetime

from rljob_api.contract.reasons import Reason
from rljob_api.v1alpha1.status import Condition, RLJobStatus

from rljob_operator.kube.objects import rfc3339

ORDER = (
    "Accepted", "ResourcesApplied", "RetrieverReady", "Admitted", "ClusterReady", "RolloutScaled", "Training",
    "Stalled", "RewardFailing", "RewardStalled", "EntropyCollapsed", "MismatchHigh", "ResponseLengthExploding",
    "NonFinite", "Suspended", "Complete", "Failed",
)  # fmt: skip
_LONGEST = 4000


class Conditions:
    """The conditions of a status being made anew, from those of the old one."""

    def __init__(self, old: Iterable[Condition], generation: int, now: datetime) -> None:
        self._by_type = {c.type: c for c in old}
        self._generation = generation
        self._now = rfc3339(now)

    def set(self, kind: str, status: bool | None, reason: Reason, message: str = "") -> None:
        """Set a condition; `status` None is Unknown."""
        word = "Unknown" if status is None else "True" if status else "False"
        old = self._by_type.get(kind)
        since = old.last_transition_time if old and old.status == word else self._now
        self._by_type[kind] = Condition.model_validate(
            {
                "type": kind,
                "status": word,
                "reason": str(reason),
                "message": message[:_LONGEST],
                "observedGeneration": self._generation,
                "lastTransitionTime": since,
            }
        )

    def drop(self, kind: str) -> None:
        """Remove a condition that does not apply."""
        self._by_type.pop(kind, None)

    def true(self, kind: str) -> bool:
        """Whether a condition holds."""
        return kind in self._by_type and self._by_type[kind].status == "True"

    def get(self, kind: str) -> Condition | None:
        """One condition."""
        return self._by_type.get(kind)

    def all(self) -> list[Condition]:
        """All of them, in their order."""
        return sorted(self._by_type.values(), key=lambda c: ORDER.index(c.type) if c.type in ORDER else len(ORDER))


def find(status: RLJobStatus, kind: str) -> Condition | None:
    """A condition of a status."""
    return next((c for c in status.conditions if c.type == kind), None)


def holds(status: RLJobStatus, kind: str) -> bool:
    """Whether a condition of a status holds."""
    found = find(status, kind)
    return found is not None and found.status == "True"
