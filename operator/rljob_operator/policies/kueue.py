"""Admission by Kueue (`lifecycle.queue`): why an attempt waits, since when it runs, and when Kueue has taken it back.

The attempt's RayJob is made suspended, with the queue's label, and is not written again: `spec.suspend` and the pod
templates are Kueue's from then on. An attempt that was admitted and is suspended again has been evicted. It is not
waited for until Kueue admits it anew in place: that cluster would run the old attempt from the old commit. The attempt
ends, its RayJob is deleted, and the next one is a Workload of its own.
"""

import re
from dataclasses import replace

from rljob_api.contract import labels
from rljob_api.contract.reasons import Reason
from rljob_api.rules.arithmetic import rollout_pods
from rljob_api.v1alpha1.status import AttemptReason, AttemptStatus

from rljob_operator.kube.objects import WORKLOAD, Obj, condition, controlled_by, meta, rfc3339
from rljob_operator.policies.attempt_outcome import Outcome, uncommitted
from rljob_operator.policies.decision import Decision, Scaling
from rljob_operator.policies.failure_policy import action
from rljob_operator.state.conditions import Conditions
from rljob_operator.state.job_view import JobView
from rljob_operator.state.pod_diagnosis import VAGUE

ENDED_REPORT = ("Succeeded", "Failed", "Suspended")
AT_REST = ("", "Suspended")
"""`jobDeploymentStatus` of a RayJob without a cluster: KubeRay has forgotten the Ray job, so that a deletion does not
stop the driver half-way through its commit."""
_REASONS: dict[str, AttemptReason] = {"PodsReadyTimeout": "StartTimeout", "NodeFailures": "NodeLost"}
"""Reasons of the condition Evicted that are failures of the attempt; all others are Kueue's own wish."""
_LOST = re.compile(r"; \d+ steps? after step \d+ not committed$")


def queued(view: JobView, decided: Decision) -> bool:
    """Whether the current attempt's RayJob waits for admission, or for being admitted again."""
    queue = view.context.spec.lifecycle.queue
    return queue is not None and decided.active is not None and suspended(_ray_job(view, decided))


def suspended(ray_job: Obj | None) -> bool:
    """Whether a RayJob is suspended; only Kueue does that."""
    return bool(((ray_job or {}).get("spec") or {}).get("suspend"))


def record_admission(view: JobView, decided: Decision) -> Decision:
    """Record since when the attempt is admitted, and as which RayCluster."""
    attempt, ray_job = decided.active, _ray_job(view, decided)
    if view.context.spec.lifecycle.queue is None or attempt is None or ray_job is None:
        return decided
    new: dict[str, str] = {}
    reported = view.report_of(attempt.number) is not None
    if attempt.admitted_time is None and (reported or not suspended(ray_job)):
        admitted = condition(_workload(view, decided) or {}, "Admitted")
        since = admitted.get("lastTransitionTime") if admitted.get("status") == "True" else None
        new["admitted_time"] = str(since or rfc3339(view.now))
    cluster = view.observed.ray_cluster(attempt.number)
    if cluster is not None and attempt.ray_cluster is None and not suspended(ray_job):
        new["ray_cluster"] = str(cluster["metadata"]["name"])
    return decided.with_attempt(**new) if new else decided


def taken_back(view: JobView, decided: Decision) -> bool:
    """Whether Kueue has evicted the current attempt, or has done so and admitted its RayJob anew meanwhile."""
    attempt = decided.active
    if attempt is None or view.context.spec.lifecycle.queue is None or attempt.admitted_time is None:
        return False
    return suspended(_ray_job(view, decided)) or _anew(view, decided, attempt)


def deactivated(view: JobView, decided: Decision) -> bool:
    """Whether the Workload is deactivated: an administrator (or Kueue's own limit) wants the attempt not to run."""
    workload = _workload(view, decided)
    return workload is not None and (workload.get("spec") or {}).get("active") is False


def evicted(view: JobView, decided: Decision, attempt: AttemptStatus, otherwise: Outcome | None) -> Outcome | None:
    """The outcome of an attempt that was taken back; None while its driver may still report.

    `otherwise` is the outcome without a queue: the driver's own word stands, but a head or a worker that went with
    the cluster is no failure.
    """
    if otherwise is not None and otherwise.reason not in VAGUE and otherwise.reason != "StartTimeout":
        return otherwise
    report = view.report_of(attempt.number)
    ended = report is not None and report.state in ENDED_REPORT
    status = (_ray_job(view, decided) or {}).get("status") or {}
    if not (ended or _anew(view, decided, attempt) or status.get("jobDeploymentStatus", "") in AT_REST):
        return None
    cause = condition(_workload(view, decided) or {}, "Evicted")
    word = str(cause.get("reason") or "suspended")
    said = f": {cause['message']}" if cause.get("message") else ""
    reason: AttemptReason = _REASONS.get(word, "Preempted")
    follows = action(view.context.spec.lifecycle, reason)
    return Outcome(
        "Suspended" if reason == "Preempted" and follows == "RetryUncounted" else "Failed",
        f"evicted by Kueue ({word}){said}",
        report.exit_code if report and ended else None,
        reason=reason,
    )


def record_late_commit(view: JobView, decided: Decision) -> Decision:
    """While the pods of an evicted attempt are ending: what its driver still commits counts."""
    attempt, report, commit = decided.current, view.report_of(decided.status.attempt), decided.status.last_commit
    if attempt is None or attempt.ray_cluster is None or report is None or not view.occupied:
        return decided
    if attempt.state not in ("Suspended", "Failed") or attempt.exit_code is not None:
        return decided
    committed = commit.step if commit else 0
    attempt = attempt.model_copy(update={"committed_step": committed, "end_step": max(report.step, committed)})
    return decided.with_attempt(
        committed_step=attempt.committed_step,
        end_step=attempt.end_step,
        message=_LOST.sub("", attempt.message or "") + uncommitted(attempt),
        exit_code=report.exit_code if report.state in ENDED_REPORT else None,
    )


def keep_queued_engines(view: JobView, decided: Decision) -> Decision:
    """Keep the engines that the attempt was queued with: quota is for these."""
    if view.context.spec.lifecycle.queue is None or not rollout_pods(decided.context.spec):
        return decided
    attempt = decided.active
    text = meta(_ray_job(view, decided) or {"metadata": {}}, "annotations", labels.ROLLOUT_REPLICAS)
    wanted = decided.context.spec.rollout.replicas
    if attempt is None or text is None or int(text) == wanted:
        return decided
    refused = (
        f"attempt {attempt.number} keeps the {text} rollout pods that it was queued with: rollout.replicas {wanted} "
        "holds from the next attempt on (suspend and resume the job to have it now)"
    )
    return replace(decided.with_engines(int(text)), scaling=Scaling(refused=refused))


def admission(view: JobView, decided: Decision, conditions: Conditions) -> None:
    """The condition Admitted; absent without a queue."""
    queue = view.context.spec.lifecycle.queue
    if queue is None:
        conditions.drop("Admitted")
        return
    attempt, ray_job = decided.active, _ray_job(view, decided)
    if decided.finished or attempt is None or ray_job is None:
        conditions.set("Admitted", False, Reason.NO_ATTEMPT, "no attempt is in the queue")
        return
    workload = _workload(view, decided)
    if taken_back(view, decided):
        cause = condition(workload or {}, "Evicted")
        conditions.set("Admitted", False, Reason.EVICTED, str(cause.get("message") or "suspended by Kueue"))
    elif not suspended(ray_job):
        its = ((workload or {}).get("status") or {}).get("admission") or {}
        by = f" by ClusterQueue {its['clusterQueue']}" if its.get("clusterQueue") else ""
        conditions.set("Admitted", True, Reason.ADMITTED, f"admitted{by} through LocalQueue {queue.name}")
    else:
        reason, message = _why_it_waits(view, decided, workload)
        conditions.set("Admitted", False, reason, f"LocalQueue {queue.name}: {message}")


def _why_it_waits(view: JobView, decided: Decision, workload: Obj | None) -> tuple[Reason, str]:
    """Why a RayJob waits, by its Workload."""
    if workload is None:
        if view.observed.kueue:
            return Reason.WAITING_FOR_ADMISSION, (
                "Kueue has not made a Workload for the RayJob yet; it makes none unless its integration "
                "ray.io/rayjob is on"
            )
        return Reason.KUEUE_MISSING, (
            "Kueue is not installed in this cluster (there is no kind Workload of kueue.x-k8s.io); the job goes on by "
            "itself once it is"
        )
    if deactivated(view, decided):
        return Reason.INADMISSIBLE, f"Workload {workload['metadata']['name']} is deactivated (spec.active is false)"
    reserved = condition(workload, "QuotaReserved")
    if reserved.get("status") == "True":
        checks = (workload.get("status") or {}).get("admissionChecks") or []
        pending = [f"{c.get('name')}: {c.get('message')}" for c in checks if c.get("state") != "Ready"]
        return Reason.WAITING_FOR_ADMISSION, f"quota is reserved, checks are pending: {'; '.join(pending)}"
    message = str(reserved.get("message") or "waiting for quota")
    if reserved.get("reason") == "Inadmissible":
        return Reason.INADMISSIBLE, message
    return Reason.WAITING_FOR_ADMISSION, message


def _anew(view: JobView, decided: Decision, attempt: AttemptStatus) -> bool:
    """Whether the attempt runs as another RayCluster than it began with."""
    name = ((_ray_job(view, decided) or {}).get("status") or {}).get("rayClusterName")
    return bool(name and attempt.ray_cluster and name != attempt.ray_cluster)


def _ray_job(view: JobView, decided: Decision) -> Obj | None:
    return view.observed.ray_job(decided.active.number) if decided.active else None


def _workload(view: JobView, decided: Decision) -> Obj | None:
    ray_job = _ray_job(view, decided)
    if ray_job is None:
        return None
    uid = ray_job["metadata"]["uid"]
    return next((found for found in view.observed.of_kind(WORKLOAD.kind) if controlled_by(found, uid)), None)
