"""Writes that the apiserver refuses: in whose words, what must wait for them, and when each is tried again.

A quota, an admission webhook, a role that the operator lacks: none of it is for the operator to mend, and all of it may
be mended by others at any time. So what is refused is said, tried again with a growing distance, and stops nothing but
what cannot do without it.
"""

import time
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, field
from typing import Literal

from rljob_api.contract.reasons import Reason

from rljob_operator.kube.client import ApiError
from rljob_operator.kube.objects import AUTOSCALER, CLAIM, DEPLOYMENT, DISRUPTION_BUDGET, SERVICE, Obj

FIRST_SECONDS, LONGEST_SECONDS = 5.0, 60.0
"""Before the second try, and at most before any: doubled each time."""
FAILURES = 3
"""After this many consecutive failures of the same write (5xx, no answer) it is reported like a refusal: a webhook may
be down."""
_LONGEST = 1000
"""Characters kept of the apiserver's words."""
_TRANSIENT = frozenset({401, 408, 409, 429})
_GOES_ON = frozenset({CLAIM.kind, SERVICE.kind, DEPLOYMENT.kind})
"""Kinds of which one that is there serves as it is: a claim that may not grow, a retriever of before."""
_DISPENSABLE = frozenset({AUTOSCALER.kind, DISRUPTION_BUDGET.kind})
"""Kinds without which a job runs."""

Verb = Literal["apply", "create", "delete", "scale"]
Key = tuple[Verb, str, str]
"""What is done, to which kind and name."""
Job = tuple[str, str]
"""Namespace and name of an RLJob."""


class NameConflictError(Exception):
    """A child's name is taken by something that is not the job's."""


@dataclass(frozen=True)
class Refusal:
    """A write that was refused."""

    key: Key
    text: str
    """Which object, and the apiserver's words."""
    reason: Reason
    invalid: bool
    """The object itself is at fault, by what the spec says or by its name; not a quota, a right, a webhook that is
    down."""
    needed: bool
    """Nothing is created, and no attempt begins, while it is refused."""

    @property
    def creates(self) -> bool:
        """Whether a RayJob or the Job that prepares is refused."""
        return self.key[0] == "create"


def refusal_text(refused: Iterable[Refusal]) -> tuple[Reason, str]:
    """One reason and one message for all."""
    them = list(refused)
    taken = any(refusal.reason is Reason.NAME_CONFLICT for refusal in them)
    return Reason.NAME_CONFLICT if taken else Reason.CHILD_REFUSED, "; ".join(refusal.text for refusal in them)


def needed(child: Obj, live: Obj | None) -> bool:
    """Whether pods cannot do without this child being applied."""
    kind = child["kind"]
    return kind not in _DISPENSABLE and not (live is not None and kind in _GOES_ON)


def is_refusal(verb: Verb, error: ApiError) -> bool:
    """Whether the apiserver has looked at the write and refused it, so that the same at once would be refused, too."""
    if verb == "scale":  # anything else says that the cluster is not as it was when that was planned
        return error.status == 403
    return error.status is not None and 400 <= error.status < 500 and error.status not in _TRANSIENT


@dataclass
class _Trial:
    """A write that has not succeeded yet."""

    digest: str
    failures: int = 0
    due: float = 0.0
    refusal: Refusal | None = None
    """None: it has failed, and is not told yet; or it is not asked for at the moment."""


@dataclass
class Refusals:
    """What is refused, by job, and when it is tried again. In memory alone: a new process tries everything once."""

    clock: Callable[[], float] = time.monotonic
    _trials: dict[Job, dict[Key, _Trial]] = field(default_factory=dict)

    def known(self, job: Job) -> tuple[Refusal, ...]:
        """What is refused of a job."""
        return tuple(trial.refusal for trial in self._trials.get(job, {}).values() if trial.refusal)

    def waits(self, job: Job, key: Key, digest: Callable[[], str]) -> bool:
        """Whether a write is to be left for later. What is to be written differs from what was refused: it is not."""
        trial = self._trials.get(job, {}).get(key)
        return trial is not None and trial.refusal is not None and self.clock() < trial.due and trial.digest == digest()

    def failed(
        self, job: Job, key: Key, digest: str, error: ApiError | NameConflictError, *, needed: bool
    ) -> tuple[Refusal, bool] | None:
        """Take note of a write that failed: as what it is refused, and whether that is new. None: as it looks, the
        apiserver is not well, and the job is to be looked at again as a whole."""
        trial = self._trials.setdefault(job, {}).setdefault(key, _Trial(digest))
        refused = isinstance(error, NameConflictError) or is_refusal(key[0], error)
        if refused and trial.digest != digest:  # something else is refused now
            trial.failures = 0
        trial.digest, trial.failures = digest, trial.failures + 1
        if not refused and trial.failures < FAILURES:
            return None
        refusal = _refusal(key, error, needed)
        new, trial.refusal = trial.refusal != refusal, refusal
        trial.due = self.clock() + min(LONGEST_SECONDS, FIRST_SECONDS * 2.0 ** min(trial.failures - 1, 16))
        return refusal, new

    def done(self, job: Job, key: Key) -> None:
        """A write has succeeded."""
        trials = self._trials.get(job, {})
        trials.pop(key, None)
        if not trials:
            self._trials.pop(job, None)

    def asked(self, job: Job, keys: Collection[Key]) -> None:
        """These are the writes that the job needs now. What is due and not among them is no longer refused, until it is
        asked for again."""
        for key, trial in self._trials.get(job, {}).items():
            if key not in keys and self.clock() >= trial.due:
                trial.refusal = None

    def left(self, job: Job) -> float | None:
        """Seconds until the next try; None when nothing is refused."""
        due = [trial.due for trial in self._trials.get(job, {}).values() if trial.refusal]
        return max(0.0, min(due) - self.clock()) if due else None

    def forget(self, job: Job) -> None:
        """The job is gone."""
        self._trials.pop(job, None)


def _refusal(key: Key, error: ApiError | NameConflictError, needed: bool) -> Refusal:
    verb, kind, name = key
    if isinstance(error, NameConflictError):
        return Refusal(key, str(error), Reason.NAME_CONFLICT, invalid=True, needed=needed)
    what = f"{kind} {name}" if verb in ("apply", "create") else f"to {verb} {kind} {name}"
    words = error.message[:_LONGEST] or f"status {error.status}"
    if not is_refusal(verb, error):
        text = f"{kind} {name} could not be {'scaled' if verb == 'scale' else 'written'} so far: {words}"
        return Refusal(key, text, Reason.CHILD_REFUSED, invalid=False, needed=needed)
    invalid = error.status in (400, 413, 422)
    return Refusal(key, f"the apiserver refuses {what}: {words}", Reason.CHILD_REFUSED, invalid=invalid, needed=needed)
