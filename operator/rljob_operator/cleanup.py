"""The end of an RLJob: the Ray cluster and the pods go first, then the finalizer; the rest is the garbage collector's.

Without this order a driver could outlive the objects it reports into, and a job made anew under the same name could
meet the pods of the old one.
"""

from dataclasses import dataclass
from datetime import datetime, timedelta

from rljob_operator import labels
from rljob_operator.objects import Obj, deleting, name_of, parse_time
from rljob_operator.observe import Observed
from rljob_operator.reasons import Reason
from rljob_operator.settings import Settings
from rljob_operator.transitions import Happening


@dataclass(frozen=True)
class End:
    """What is left to do for a job that is being deleted."""

    done: bool = False
    """The finalizer may go."""
    delete: tuple[Obj, ...] = ()
    events: tuple[Happening, ...] = ()
    requeue: float | None = None


def clean_up(observed: Observed, now: datetime, settings: Settings) -> End:
    """Delete what runs, wait (bounded) until it is gone."""
    metadata = observed.job["metadata"]
    if labels.FINALIZER not in (metadata.get("finalizers") or []):
        return End()
    running = [*observed.of_kind("RayJob"), *observed.of_kind("Deployment"), *observed.of_kind("Job")]
    left = [*running, *observed.of_kind("RayCluster"), *observed.pods]
    if not left:
        return End(done=True)
    limit = parse_time(metadata["deletionTimestamp"]) + timedelta(seconds=settings.cleanup_timeout_seconds)
    if now >= limit:
        what = ", ".join(sorted(f"{obj['kind']} {name_of(obj)}" for obj in left)[:10])
        message = f"not gone within {settings.cleanup_timeout_seconds:.0f} s, left to the garbage collector: {what}"
        return End(done=True, events=(Happening(Reason.CLEANUP_TIMEOUT, message),))
    delete = tuple(obj for obj in running if not deleting(obj))
    return End(delete=delete, requeue=min(5.0, (limit - now).total_seconds()))
