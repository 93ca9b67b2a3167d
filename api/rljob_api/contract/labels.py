"""Labels and annotations that the operator sets, and the finalizer that it owns."""

from typing import Literal

Group = Literal["head", "trainer", "rollout", "retriever", "prepare"]
RAY_GROUPS: tuple[Group, ...] = ("head", "trainer", "rollout")

JOB = "rljob.io/job"
"""Name of the RLJob: on every child and pod. What is watched and listed is selected by it, on the server's side."""
ROLE = "rljob.io/role"
"""Role of a pod: head, trainer, rollout, retriever or prepare."""
ATTEMPT = "rljob.io/attempt"
"""Number of the attempt: label of RayJobs and Ray pods; annotation of the Lease (who may hold it)."""
APPLIED = "rljob.io/applied"
"""Annotation: digest of what the operator applied last, to see that a field is no longer wanted."""
CONFIG_DIGEST = "rljob.io/config-digest"
"""Annotation of the retriever's pods: digest of what they read once, at start."""
RESUME = "rljob.io/resume"
"""Annotation of an RLJob, set by the user: number of the attempt whose pause by learning health is over."""
ROLLOUT_REPLICAS = "rljob.io/rollout-replicas"
"""Annotation of a RayJob that is queued by Kueue: the rollout pods that it asks for."""
WORKLOAD_OF = "kueue.x-k8s.io/job-uid"
"""Label of a Workload: UID of what it is for. Kueue gives it none of ours."""
PROGRESS_COMPONENT = "progress"
"""app.kubernetes.io/component of progress ConfigMaps, the only ConfigMaps that are watched."""
FINALIZER = "rljob.io/cleanup"
"""The operator takes the Ray cluster and the pods down before the RLJob goes."""


def common(job: str, component: str = "job") -> dict[str, str]:
    """Labels of every child of the RLJob `job`."""
    return {
        "app.kubernetes.io/name": "rljob-job",
        "app.kubernetes.io/instance": job,
        "app.kubernetes.io/component": component,
        "app.kubernetes.io/part-of": "rljob",
        "app.kubernetes.io/managed-by": "rljob-operator",
        JOB: job,
    }


def pod(job: str, group: Group, attempt: int | None = None) -> dict[str, str]:
    """Labels of the pods of one group."""
    labels = common(job, group) | {ROLE: group}
    return labels | {ATTEMPT: str(attempt)} if attempt is not None else labels
