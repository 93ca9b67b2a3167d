"""The end of an RLJob: the Ray cluster and the pods go first, then the finalizer; the rest is the garbage collector's.

Without this order a driver could outlive the objects it reports into, and a job made anew under the same name could
meet the pods of the old one. Neither spec nor status of the job is read: another version may have written them.
"""

from dataclasses import dataclass
from datetime import datetime, timedelta

from rljob_api.contract import labels
from rljob_api.contract.reasons import Reason

from rljob_operator.kube.objects import Obj, deleting, meta, name_of, parse_time
from rljob_operator.policies import preparation
from rljob_operator.policies.attempt_outcome import TERMINAL
from rljob_operator.settings import Settings
from rljob_operator.state.events import Happening
from rljob_operator.state.observe import Observed
from rljob_operator.state.pod_diagnosis import ended


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
    makers = [child for kind in ("RayJob", "Deployment", "Job") for child in observed.of_kind(kind)]
    running = [child for child in makers if not _over(child, observed)]
    left = [*running, *observed.of_kind("RayCluster"), *(pod for pod in observed.pods if not _prepared(pod))]
    if not left:
        return End(done=True)
    limit = parse_time(metadata["deletionTimestamp"]) + timedelta(seconds=settings.cleanup_timeout_seconds)
    if now >= limit:
        what = ", ".join(sorted(f"{obj['kind']} {name_of(obj)}" for obj in left)[:10])
        message = f"not gone within {settings.cleanup_timeout_seconds:.0f} s, left to the garbage collector: {what}"
        return End(done=True, events=(Happening(Reason.CLEANUP_TIMEOUT, message),))
    delete = tuple(obj for obj in running if not deleting(obj))
    return End(delete=delete, requeue=min(5.0, (limit - now).total_seconds()))


def _over(child: Obj, observed: Observed) -> bool:
    """Whether a child makes no pods any more: then it is the garbage collector's."""
    status = child.get("status") or {}
    match child["kind"]:
        case "RayJob":
            cluster = observed.of_kind("RayCluster") or observed.ray_pods
            return status.get("jobDeploymentStatus") in TERMINAL and not cluster
        case "Deployment":
            generation = child["metadata"].get("generation", 0)
            seen = status.get("observedGeneration", 0) >= generation
            return bool(seen and child["spec"].get("replicas") == 0)
        case _:
            return preparation.ended(child)


def _prepared(pod: Obj) -> bool:
    """Whether it is an ended pod of the Job that prepares, which goes with the Job."""
    return meta(pod, "labels", labels.ROLE) == "prepare" and ended(pod)
