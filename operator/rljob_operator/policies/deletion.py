"""What is deleted of a job that has finished, and of one that is being deleted.

Of a deleted job the Ray cluster and the pods go first, then the finalizer; the rest is the garbage collector's. Without
this order a driver could outlive the objects it reports into, and a job made anew under the same name could meet the
pods of the old one. Neither spec nor status of that job is read: another version may have written them.
"""

from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from rljob_api.contract import labels
from rljob_api.contract.reasons import Reason

from rljob_operator.kube.objects import RAY_JOB, RAY_JOB_ENDED, Obj, deleting, meta, name_of, parse_time
from rljob_operator.policies import kueue, preparation
from rljob_operator.policies.decision import JOB_STOPPED, Decision
from rljob_operator.settings import Settings
from rljob_operator.state.events import StatusEvent
from rljob_operator.state.job_view import JobView
from rljob_operator.state.observe import Observed
from rljob_operator.state.pod_diagnosis import ended


@dataclass(frozen=True)
class Cleanup:
    """What is left to do for a job that is being deleted."""

    done: bool = False
    """The finalizer may go."""
    delete: tuple[Obj, ...] = ()
    events: tuple[StatusEvent, ...] = ()
    requeue: float | None = None


def clear_deleted(observed: Observed, now: datetime, settings: Settings) -> Cleanup:
    """Delete what runs, wait (bounded) until it is gone."""
    metadata = observed.job["metadata"]
    if labels.FINALIZER not in (metadata.get("finalizers") or []):
        return Cleanup()
    makers = [child for kind in ("RayJob", "Deployment", "Job") for child in observed.of_kind(kind)]
    running = [child for child in makers if not _over(child, observed)]
    left = [*running, *observed.of_kind("RayCluster"), *(pod for pod in observed.pods if not _prepared(pod))]
    if not left:
        return Cleanup(done=True)
    limit = parse_time(metadata["deletionTimestamp"]) + timedelta(seconds=settings.cleanup_timeout_seconds)
    if now >= limit:
        what = ", ".join(sorted(f"{obj['kind']} {name_of(obj)}" for obj in left)[:10])
        message = f"not gone within {settings.cleanup_timeout_seconds:.0f} s, left to the garbage collector: {what}"
        return Cleanup(done=True, events=(StatusEvent(Reason.CLEANUP_TIMEOUT, message),))
    delete = tuple(obj for obj in running if not deleting(obj))
    return Cleanup(delete=delete, requeue=min(5.0, (limit - now).total_seconds()))


def clear_finished(view: JobView, decided: Decision) -> Decision:
    """Let KubeRay take the cluster down after the driver's end; help where it does not. Then the job itself goes, if
    it is not to stay."""
    decided, current = decided.wait(*JOB_STOPPED), decided.current
    delete = preparation.superfluous(view, decided)
    for ray_job in view.observed.of_kind(RAY_JOB.kind):
        if deleting(ray_job):
            continue
        if current is None or name_of(ray_job) != current.ray_job:
            delete.append(ray_job)
        elif (ray_job.get("status") or {}).get("jobDeploymentStatus") not in RAY_JOB_ENDED:
            reported = current.exit_code is not None
            waited = reported and not kueue.suspended(ray_job)
            left = view.left(current.end_time, view.settings.report_grace_seconds) if waited else 0.0
            if left:
                decided = decided.look_again(left + 1.0)
            else:
                delete.append(ray_job)
    ttl = view.context.spec.lifecycle.ttl_seconds_after_finished
    if ttl is not None:
        if left := view.left(decided.status.completion_time, ttl):
            decided = decided.look_again(left + 1.0)
        else:
            delete.append(view.observed.job)
    return replace(decided, delete=tuple(delete))


def _over(child: Obj, observed: Observed) -> bool:
    """Whether a child makes no pods any more: then it is the garbage collector's."""
    status = child.get("status") or {}
    match child["kind"]:
        case "RayJob":
            cluster = observed.of_kind("RayCluster") or observed.ray_pods
            return status.get("jobDeploymentStatus") in RAY_JOB_ENDED and not cluster
        case "Deployment":
            generation = child["metadata"].get("generation", 0)
            seen = status.get("observedGeneration", 0) >= generation
            return bool(seen and child["spec"].get("replicas") == 0)
        case _:
            return preparation.ended(child)


def _prepared(pod: Obj) -> bool:
    """Whether it is an ended pod of the Job that prepares, which goes with the Job."""
    return meta(pod, "labels", labels.ROLE) == "prepare" and ended(pod)
