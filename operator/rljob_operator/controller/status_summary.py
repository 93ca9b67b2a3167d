"""The status that a user reads: conditions, phase, message and pod counts."""

from rljob_api.contract import labels
from rljob_api.contract.reasons import Reason
from rljob_api.manifest.arithmetic import rollout_pods, trains
from rljob_api.v1alpha1.status import GroupStatus, Phase

from rljob_operator.kube.objects import rfc3339
from rljob_operator.policies import kueue, learning_health, preparation
from rljob_operator.policies.attempts import Step, retriever_needed
from rljob_operator.policies.scaling import Scaling
from rljob_operator.state.conditions import Conditions
from rljob_operator.state.job_view import View
from rljob_operator.state.pod_diagnosis import begun, find, silent_pod
from rljob_operator.state.refusals import said


def summarise(view: View, step: Step, scaling: Scaling) -> None:
    """Bring `view.status` in line with what was observed and with the step that is taken."""
    status, generation = view.status, view.observed.job["metadata"].get("generation", 0)
    conditions = Conditions(status.conditions, generation, view.now)
    status.observed_generation = generation
    _applied(view, conditions)
    _finish(view, step, conditions)
    status.conditions = conditions.all()  # what follows asks whether the job is finished
    _groups(view)
    _retriever(view, conditions)
    kueue.report(view, conditions)
    _cluster(view, step, conditions)
    _scaled(view, scaling, conditions)
    _training(view, conditions)
    learning_health.report(view, conditions)
    learning_health.reward_failures(view, conditions)
    learning_health.stalled(view, conditions)
    _suspended(view, conditions)
    status.conditions = conditions.all()
    status.phase, status.message = _phase(view, step, conditions)


def _applied(view: View, conditions: Conditions) -> None:
    unread = view.context.unread
    left_out = f"not read by this version of the operator, which goes on without: {'; '.join(unread)}" if unread else ""
    conditions.set("Accepted", True, Reason.VALID, left_out)
    if not view.refused:
        conditions.set("ResourcesApplied", True, Reason.APPLIED)
        return
    conditions.set("ResourcesApplied", False, *said(view.refused))
    # What has not begun and cannot by what its spec says is not accepted; what others refuse they may allow any time.
    faults = [its for its in view.refused if its.invalid and (its.needed or its.creates)]
    if faults and not view.status.attempt:
        conditions.set("Accepted", False, *said(faults))


def _finish(view: View, step: Step, conditions: Conditions) -> None:
    status = view.status
    if step.finish:
        reason, message = step.finish
        well = reason in (Reason.SUCCEEDED, Reason.TARGET_REACHED)
        conditions.set("Complete", well, reason, message)
        conditions.set("Failed", not well, reason, message)
        status.completion_time = rfc3339(view.now)
    elif view.finished:
        for kind in ("Complete", "Failed"):
            if old := conditions.get(kind):
                conditions.set(kind, old.status == "True", Reason(old.reason), old.message)
    else:
        conditions.set("Complete", False, Reason.NOT_FINISHED)
        conditions.set("Failed", False, Reason.NOT_FINISHED)


def _groups(view: View) -> None:
    status, spec, name = view.status, view.context.spec, view.context.name
    # Only what goes on is counted: pods on their way out are no news, and each of them would cost a write.
    on = view.active is not None
    status.head = GroupStatus(desired=int(on), ready=view.ready("head") if on else 0)
    trainers = spec.trainer.replicas if trains(spec) else 0
    status.trainer = GroupStatus(desired=trainers, ready=view.ready("trainer")) if on else GroupStatus()
    status.rollout = GroupStatus(desired=rollout_pods(spec), ready=view.ready("rollout")) if on else GroupStatus()
    needed = spec.retriever is not None and retriever_needed(view)
    wanted = view.retriever_wanted
    status.retriever = GroupStatus(desired=wanted, ready=view.retriever_ready) if needed else GroupStatus()
    status.rollout_replicas = len(view.observed.group("rollout", status.attempt)) if on else 0
    status.rollout_selector = f"{labels.JOB}={name},{labels.ROLE}=rollout"


def _retriever(view: View, conditions: Conditions) -> None:
    if view.context.spec.retriever is None:
        conditions.drop("RetrieverReady")
        return
    group = view.status.retriever
    if not retriever_needed(view):
        conditions.set("RetrieverReady", False, Reason.SCALED_DOWN, "no pods while the job is suspended or finished")
    elif group.ready:
        conditions.set("RetrieverReady", True, Reason.RETRIEVER_READY, f"{group.ready} of {group.desired} pods ready")
    elif trouble := find(view.retriever_pods):
        said = (Reason.UNSCHEDULABLE, Reason.WRONG_ENVIRONMENT, Reason.PORT_TAKEN, Reason.IMAGE_PULL)
        reason = trouble.reason if trouble.reason in said else Reason.RETRIEVER_FAILING
        conditions.set("RetrieverReady", False, reason, trouble.message)
    elif silent := silent_pod(view.retriever_pods):
        conditions.set("RetrieverReady", False, Reason.RETRIEVER_SILENT, silent)
    elif view.retriever_timed_out:
        seconds = view.context.spec.retriever.startup_timeout_seconds
        conditions.set("RetrieverReady", False, Reason.RETRIEVER_TIMEOUT, f"not ready within {seconds:.0f} s")
    else:
        found = view.status.preparation
        message = preparation.said(found) if found and not preparation.done(view) else "loading the index"
        conditions.set("RetrieverReady", False, Reason.RETRIEVER_STARTING, message)


def _cluster(view: View, step: Step, conditions: Conditions) -> None:
    status, attempt = view.status, view.active
    # Of a RayJob that is about to be made the same is said as of its first moments.
    coming = step.waiting is Reason.PODS_STARTING
    if attempt is None or (view.observed.ray_job(attempt.number) is None and not coming):
        conditions.set("ClusterReady", False, step.waiting, step.message)
        return
    if kueue.queued(view) and (admitted := conditions.get("Admitted")):
        conditions.set("ClusterReady", False, Reason.WAITING_FOR_ADMISSION, admitted.message)
        return
    groups = {"head": status.head, "trainer": status.trainer, "rollout": status.rollout}
    counts = ", ".join(f"{name} {group.ready}/{group.desired}" for name, group in groups.items())
    if all(group.ready >= group.desired for group in groups.values()):
        conditions.set("ClusterReady", True, Reason.CLUSTER_READY, f"all pods ready: {counts}")
        return
    if trouble := find(pod for pod in view.observed.ray_pods):
        conditions.set("ClusterReady", False, trouble.reason, trouble.message)
        return
    was_ready = conditions.true("ClusterReady") or attempt.state == "Running"
    conditions.set(
        "ClusterReady", False, Reason.POD_LOST if was_ready else Reason.PODS_STARTING, f"pods ready: {counts}"
    )


def _scaled(view: View, scaling: Scaling, conditions: Conditions) -> None:
    """Said from the first scaling on."""
    if scaling.refused:
        conditions.set("RolloutScaled", False, Reason.SCALING_REFUSED, scaling.refused)
    elif scaling.message:
        conditions.set("RolloutScaled", False, Reason.SCALING, scaling.message)
    elif conditions.get("RolloutScaled"):
        conditions.set("RolloutScaled", True, Reason.SCALED, f"{view.status.rollout.desired} pods as asked")


def _training(view: View, conditions: Conditions) -> None:
    attempt = view.active
    if attempt and attempt.state == "Running":
        conditions.set("Training", True, Reason.TRAINING, f"attempt {attempt.number} is running")
    elif attempt:
        conditions.set("Training", False, Reason.NOT_REPORTED, "the driver has not reported yet")
    else:
        reason = Reason.STOPPED if view.current else Reason.NO_ATTEMPT
        conditions.set("Training", False, reason)


def _suspended(view: View, conditions: Conditions) -> None:
    old = conditions.get("Suspended")
    if view.wants_suspend and not view.finished:
        if view.active or view.occupied:
            conditions.set(
                "Suspended", False, Reason.SUSPENDING, "waiting for the commit, then for the pods to be gone"
            )
        else:
            commit = view.status.last_commit
            where = f"at step {commit.step}" if commit else "from the beginning"
            reason = Reason.PAUSED if view.status.paused else Reason.SUSPENDED
            conditions.set("Suspended", True, reason, f"{learning_health.why_suspended(view)}; will resume {where}")
    elif (
        old and old.reason in (Reason.SUSPENDED, Reason.SUSPENDING, Reason.PAUSED, Reason.RESUMED) and not view.finished
    ):
        conditions.set("Suspended", False, Reason.RESUMED)
    else:
        conditions.set("Suspended", False, Reason.NOT_SUSPENDED)


def _phase(view: View, step: Step, conditions: Conditions) -> tuple[Phase, str]:
    for kind, phase in (("Complete", "Succeeded"), ("Failed", "Failed")):
        if (found := conditions.get(kind)) and found.status == "True":
            return phase, found.message  # type: ignore[return-value]
    cluster, retriever, suspended = (conditions.get(c) for c in ("ClusterReady", "RetrieverReady", "Suspended"))
    why = cluster.message if cluster else ""
    if view.wants_suspend:
        return ("Suspended" if conditions.true("Suspended") else "Suspending"), suspended.message if suspended else ""
    if attempt := view.active:
        if kueue.queued(view) and (admitted := conditions.get("Admitted")):
            return ("Suspending" if kueue.taken_back(view) else "Queued"), admitted.message
        if attempt.state == "Running":
            return "Running", "" if conditions.true("ClusterReady") else why
        return "Starting", why
    if view.current and view.current.state == "Failed":
        return "Retrying", f"attempt {view.current.number} failed: {view.current.message}"
    if step.waiting is Reason.WAITING_FOR_RETRIEVER and retriever:
        # Nothing of the job runs before its first container does.
        at_work = preparation.recorded(view.status) or any(begun(pod) for pod in view.retriever_pods)
        return ("Preparing" if at_work else "Pending"), retriever.message
    return "Pending", step.message
