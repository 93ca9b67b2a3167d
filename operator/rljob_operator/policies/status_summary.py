"""The status that a user reads: conditions, phase, message and pod counts."""

from typing import Any

from rljob_api.contract import labels
from rljob_api.contract.reasons import Reason
from rljob_api.rules.arithmetic import rollout_pods, trains
from rljob_api.v1alpha1.status import GroupStatus, Phase

from rljob_operator.kube.objects import rfc3339
from rljob_operator.policies import kueue, learning_health, preparation
from rljob_operator.policies.attempts import retriever_needed
from rljob_operator.policies.decision import Decision, wants_suspend
from rljob_operator.state.conditions import Conditions
from rljob_operator.state.job_view import JobView
from rljob_operator.state.pod_diagnosis import has_started, ready, silent_pod, worst_problem
from rljob_operator.state.refusals import refusal_text


def summarise(view: JobView, decided: Decision) -> Decision:
    """Bring the status in line with what was observed and with what is decided."""
    generation = view.observed.job["metadata"].get("generation", 0)
    conditions = Conditions(decided.status.conditions, generation, view.now)
    _applied(view, decided, conditions)
    _ended(decided, conditions)
    completion = rfc3339(view.now) if decided.end else decided.status.completion_time
    # What follows asks whether the job is finished.
    decided = decided.with_status(
        observed_generation=generation, conditions=conditions.all(), completion_time=completion
    )
    decided = decided.with_status(**_groups(view, decided))
    _retriever(view, decided, conditions)
    kueue.admission(view, decided, conditions)
    _cluster(view, decided, conditions)
    _scaled(decided, conditions)
    _training(decided, conditions)
    learning_health.health(view, decided, conditions)
    learning_health.reward_failures(view, decided, conditions)
    learning_health.stalled(view, decided, conditions)
    _suspended(view, decided, conditions)
    phase, message = _phase(view, decided, conditions)
    return decided.with_status(conditions=conditions.all(), phase=phase, message=message)


def _applied(view: JobView, decided: Decision, conditions: Conditions) -> None:
    unread = view.context.unread
    left_out = f"not read by this version of the operator, which goes on without: {'; '.join(unread)}" if unread else ""
    conditions.set("Accepted", True, Reason.VALID, left_out)
    if not view.refused:
        conditions.set("ResourcesApplied", True, Reason.APPLIED)
        return
    conditions.set("ResourcesApplied", False, *refusal_text(view.refused))
    # What has not begun and cannot by what its spec says is not accepted; what others refuse they may allow any time.
    faults = [its for its in view.refused if its.invalid and (its.needed or its.creates)]
    if faults and not decided.status.attempt:
        conditions.set("Accepted", False, *refusal_text(faults))


def _ended(decided: Decision, conditions: Conditions) -> None:
    if decided.end:
        reason, message = decided.end
        well = reason in (Reason.SUCCEEDED, Reason.TARGET_REACHED)
        conditions.set("Complete", well, reason, message)
        conditions.set("Failed", not well, reason, message)
    elif decided.finished:
        for kind in ("Complete", "Failed"):
            if old := conditions.get(kind):
                conditions.set(kind, old.status == "True", Reason(old.reason), old.message)
    else:
        conditions.set("Complete", False, Reason.NOT_FINISHED)
        conditions.set("Failed", False, Reason.NOT_FINISHED)


def _groups(view: JobView, decided: Decision) -> dict[str, Any]:
    """The counts of pods."""
    spec, attempt = decided.context.spec, decided.status.attempt
    # Only what goes on is counted: pods on their way out are no news, and each of them would cost a write.
    on = decided.active is not None

    def group(name: str, desired: int) -> GroupStatus:
        return GroupStatus(desired=desired, ready=sum(map(ready, view.observed.group(name, attempt))))

    needed = spec.retriever is not None and retriever_needed(view, decided)
    retriever = GroupStatus(desired=view.retriever_wanted, ready=view.retriever_ready) if needed else GroupStatus()
    trainers = spec.trainer.replicas if trains(spec) else 0
    return {
        "head": group("head", 1) if on else GroupStatus(),
        "trainer": group("trainer", trainers) if on else GroupStatus(),
        "rollout": group("rollout", rollout_pods(spec)) if on else GroupStatus(),
        "retriever": retriever,
        "rollout_replicas": len(view.observed.group("rollout", attempt)) if on else 0,
        "rollout_selector": f"{labels.JOB}={decided.context.name},{labels.ROLE}=rollout",
    }


def _retriever(view: JobView, decided: Decision, conditions: Conditions) -> None:
    if view.context.spec.retriever is None:
        conditions.drop("RetrieverReady")
        return
    group = decided.status.retriever
    if not retriever_needed(view, decided):
        conditions.set("RetrieverReady", False, Reason.SCALED_DOWN, "no pods while the job is suspended or finished")
    elif group.ready:
        conditions.set("RetrieverReady", True, Reason.RETRIEVER_READY, f"{group.ready} of {group.desired} pods ready")
    elif problem := worst_problem(view.retriever_pods):
        said = (Reason.UNSCHEDULABLE, Reason.WRONG_ENVIRONMENT, Reason.PORT_TAKEN, Reason.IMAGE_PULL)
        reason = problem.reason if problem.reason in said else Reason.RETRIEVER_FAILING
        conditions.set("RetrieverReady", False, reason, problem.message)
    elif silent := silent_pod(view.retriever_pods):
        conditions.set("RetrieverReady", False, Reason.RETRIEVER_SILENT, silent)
    elif view.retriever_timed_out:
        seconds = view.context.spec.retriever.startup_timeout_seconds
        conditions.set("RetrieverReady", False, Reason.RETRIEVER_TIMEOUT, f"not ready within {seconds:.0f} s")
    else:
        found = decided.status.preparation
        message = (
            preparation.progress_text(found) if found and not preparation.done(view, decided) else "loading the index"
        )
        conditions.set("RetrieverReady", False, Reason.RETRIEVER_STARTING, message)


def _cluster(view: JobView, decided: Decision, conditions: Conditions) -> None:
    status, attempt = decided.status, decided.active
    # Of a RayJob that is about to be made the same is said as of its first moments.
    coming = decided.waiting is Reason.PODS_STARTING
    if attempt is None or (view.observed.ray_job(attempt.number) is None and not coming):
        conditions.set("ClusterReady", False, decided.waiting, decided.message)
        return
    if kueue.queued(view, decided) and (admitted := conditions.get("Admitted")):
        conditions.set("ClusterReady", False, Reason.WAITING_FOR_ADMISSION, admitted.message)
        return
    groups = {"head": status.head, "trainer": status.trainer, "rollout": status.rollout}
    counts = ", ".join(f"{name} {group.ready}/{group.desired}" for name, group in groups.items())
    if all(group.ready >= group.desired for group in groups.values()):
        conditions.set("ClusterReady", True, Reason.CLUSTER_READY, f"all pods ready: {counts}")
        return
    if problem := worst_problem(view.observed.ray_pods):
        conditions.set("ClusterReady", False, problem.reason, problem.message)
        return
    was_ready = conditions.true("ClusterReady") or attempt.state == "Running"
    conditions.set(
        "ClusterReady", False, Reason.POD_LOST if was_ready else Reason.PODS_STARTING, f"pods ready: {counts}"
    )


def _scaled(decided: Decision, conditions: Conditions) -> None:
    """Said from the first scaling on."""
    scaling = decided.scaling
    if scaling.refused:
        conditions.set("RolloutScaled", False, Reason.SCALING_REFUSED, scaling.refused)
    elif scaling.message:
        conditions.set("RolloutScaled", False, Reason.SCALING, scaling.message)
    elif conditions.get("RolloutScaled"):
        conditions.set("RolloutScaled", True, Reason.SCALED, f"{decided.status.rollout.desired} pods as asked")


def _training(decided: Decision, conditions: Conditions) -> None:
    attempt = decided.active
    if attempt and attempt.state == "Running":
        conditions.set("Training", True, Reason.TRAINING, f"attempt {attempt.number} is running")
    elif attempt:
        conditions.set("Training", False, Reason.NOT_REPORTED, "the driver has not reported yet")
    else:
        reason = Reason.STOPPED if decided.current else Reason.NO_ATTEMPT
        conditions.set("Training", False, reason)


def _suspended(view: JobView, decided: Decision, conditions: Conditions) -> None:
    old = conditions.get("Suspended")
    if wants_suspend(view, decided) and not decided.finished:
        if decided.active or view.occupied:
            conditions.set(
                "Suspended", False, Reason.SUSPENDING, "waiting for the commit, then for the pods to be gone"
            )
        else:
            commit = decided.status.last_commit
            where = f"at step {commit.step}" if commit else "from the beginning"
            reason = Reason.PAUSED if decided.status.paused else Reason.SUSPENDED
            conditions.set("Suspended", True, reason, f"{learning_health.why_suspended(decided)}; will resume {where}")
    elif (
        old
        and old.reason in (Reason.SUSPENDED, Reason.SUSPENDING, Reason.PAUSED, Reason.RESUMED)
        and not decided.finished
    ):
        conditions.set("Suspended", False, Reason.RESUMED)
    else:
        conditions.set("Suspended", False, Reason.NOT_SUSPENDED)


def _phase(view: JobView, decided: Decision, conditions: Conditions) -> tuple[Phase, str]:
    for kind, phase in (("Complete", "Succeeded"), ("Failed", "Failed")):
        if (found := conditions.get(kind)) and found.status == "True":
            return phase, found.message  # type: ignore[return-value]
    cluster, retriever, suspended = (conditions.get(c) for c in ("ClusterReady", "RetrieverReady", "Suspended"))
    why = cluster.message if cluster else ""
    if wants_suspend(view, decided):
        return ("Suspended" if conditions.true("Suspended") else "Suspending"), suspended.message if suspended else ""
    if attempt := decided.active:
        if kueue.queued(view, decided) and (admitted := conditions.get("Admitted")):
            return ("Suspending" if kueue.taken_back(view, decided) else "Queued"), admitted.message
        if attempt.state == "Running":
            return "Running", "" if conditions.true("ClusterReady") else why
        return "Starting", why
    if decided.current and decided.current.state == "Failed":
        return "Retrying", f"attempt {decided.current.number} failed: {decided.current.message}"
    if decided.waiting is Reason.WAITING_FOR_RETRIEVER and retriever:
        # Nothing of the job runs before its first container does.
        at_work = preparation.recorded(decided.status) or any(has_started(pod) for pod in view.retriever_pods)
        return ("Preparing" if at_work else "Pending"), retriever.message
    return "Pending", decided.message
