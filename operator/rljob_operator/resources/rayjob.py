"""The RayJob of one attempt: head with the driver, trainer group, rollout group.

HTTPMode: KubeRay submits the entrypoint over the dashboard's API and Ray starts it on the head. No submitter pod, no
second image. Its one trap, resubmission after a lost head, is closed by an annotation that keeps KubeRay from making
a new head, by `restartPolicy: Never`, and by the driver's Lease. See docs/decisions/0005-ray-jobs-over-http.md.
"""

import json
import shlex
from decimal import Decimal
from typing import Any

from rljob_api.contract import environment_variables as variables
from rljob_api.contract import labels, names
from rljob_api.contract.job_document import MANIFEST_KEY
from rljob_api.rules.arithmetic import ranks_per_replica, rollout_pods, shares_gpus, trains
from rljob_api.v1alpha1.lifecycle import GangSpec, QueueSpec
from rljob_api.v1alpha1.pods import PodOverrides

from rljob_operator.kube.objects import RAY_JOB, Obj, name_of, quantity
from rljob_operator.resources import environment, pod
from rljob_operator.resources.context import CONFIG_DIR, Context

NO_NEW_HEAD = "ray.io/disable-provisioned-head-restart"
"""KubeRay's annotation: a head that is lost once the cluster was up is not replaced."""
ROLLOUT_MAX = 1024
"""Upper bound of the rollout group for KubeRay; as that of `spec.rollout.replicas`."""
HEAD_REQUESTS = {"cpu": "250m", "memory": "1Gi"}
WORKER_REQUESTS = {"cpu": "250m", "memory": "1Gi"}
"""What a pod asks for when the user says nothing."""
END_SECONDS = 5
"""What is left of the grace period for Ray's own end, after the driver's."""
TOKEN_SINCE = [2, 52]
"""First Ray that knows tokens; KubeRay refuses them with an older one."""
OBJECT_STORE_SHARE = Decimal("0.6")
"""Share of /dev/shm for Ray's object store; the rest is for collectives and data loaders."""
MIN_OBJECT_STORE = 80 * 1024**2
"""Ray refuses a smaller one than 75 MiB."""
GANG_ENABLED = "ray.io/gang-scheduling-enabled"
VOLCANO_QUEUE = "volcano.sh/queue-name"
VOLCANO_PRIORITY = "ray.io/priority-class-name"
YUNIKORN_APP, YUNIKORN_QUEUE = "yunikorn.apache.org/app-id", "yunikorn.apache.org/queue"
KAI_QUEUE = "kai.scheduler/queue"
KUEUE_QUEUE, KUEUE_PRIORITY = "kueue.x-k8s.io/queue-name", "kueue.x-k8s.io/priority-class"


def ray_job(context: Context, attempt: int, resume_from: str | None) -> Obj:
    """The RayJob of an attempt that starts from the commit `resume_from`. Created once, never changed."""
    body = context.child(RAY_JOB, names.ray_job(context.name, attempt))
    body["metadata"]["labels"][labels.ATTEMPT] = str(attempt)
    priority = context.spec.trainer.pod.priority_class_name
    body["metadata"]["labels"] |= _gang_labels(context.spec.lifecycle.gang, name_of(body), priority)
    body["metadata"]["annotations"] = {NO_NEW_HEAD: "true"}
    queue = context.spec.lifecycle.queue
    if queue:
        body["metadata"]["labels"] |= _queue_labels(queue)
        body["metadata"]["annotations"][labels.ROLLOUT_REPLICAS] = str(rollout_pods(context.spec))
    groups = [_trainer(context, attempt)] if trains(context.spec) else []
    if rollout_pods(context.spec):
        groups.append(_rollout(context, attempt))
    body["spec"] = {
        "entrypoint": entrypoint(context, attempt, resume_from),
        "submissionMode": "HTTPMode",
        "backoffLimit": 0,
        "shutdownAfterJobFinishes": True,
        "ttlSecondsAfterFinished": 0,
        "rayClusterSpec": {
            "rayVersion": context.settings.ray_version,
            **_authentication(context),
            "enableInTreeAutoscaling": False,
            "headGroupSpec": _head(context, attempt),
            "workerGroupSpecs": groups,
        },
    }
    if queue:
        body["spec"]["suspend"] = True  # Kueue's from now on
    return body


def _gang_labels(gang: GangSpec | None, ray_job: str, priority_class: str | None) -> dict[str, str]:
    """Labels by which KubeRay hands the pods of the RayJob `ray_job` to a batch scheduler: it copies them to its
    cluster and pods and makes the PodGroup or task groups itself, if it is installed with that scheduler.
    `priority_class`: of the pods, for schedulers that order whole gangs by it."""
    if gang is None:
        return {}
    queue = gang.queue
    match gang.scheduler:
        case "volcano":
            return ({VOLCANO_QUEUE: queue} if queue else {}) | (
                {VOLCANO_PRIORITY: priority_class} if priority_class else {}
            )
        case "yunikorn":
            return {GANG_ENABLED: "true", YUNIKORN_APP: ray_job} | ({YUNIKORN_QUEUE: queue} if queue else {})
        case "scheduler-plugins":
            return {GANG_ENABLED: "true"}
        case "kai-scheduler":
            return {KAI_QUEUE: queue} if queue else {}


def _queue_labels(queue: QueueSpec) -> dict[str, str]:
    """Labels by which Kueue manages a RayJob that waits in the LocalQueue."""
    return {KUEUE_QUEUE: queue.name} | ({KUEUE_PRIORITY: queue.priority_class} if queue.priority_class else {})


def entrypoint(context: Context, attempt: int, resume_from: str | None) -> str:
    """The driver's command line, for the shell that Ray starts it by.

    The incarnation is the attempt and the first 8 hex digits of the head pod's UID, which only the pod knows: another
    head, were there ever one, would write beneath a directory of its own.
    """
    job = ["--job", f"{CONFIG_DIR}/{MANIFEST_KEY}", "--dir", context.directory]
    command = shlex.join(["python", "-m", "rljob_trainer.driver", *job, "--attempt", str(attempt)])
    resume = f" --resume-from {shlex.quote(resume_from)}" if resume_from else ""
    return f"{command} --incarnation {attempt:04d}-${{{variables.INCARNATION_ID}%%-*}}{resume}"


def _authentication(context: Context) -> Obj:
    """KubeRay makes a Secret with a random token, which all containers of the cluster and its own client read."""
    version = [int(part) for part in context.settings.ray_version.split(".")[:2] if part.isdigit()]
    if not context.settings.ray_token_auth or version < TOKEN_SINCE:
        return {}
    return {"authOptions": {"mode": "token"}}


def _head(context: Context, attempt: int) -> Obj:
    ports = {"gcs-server": 6379, "dashboard": 8265, "client": 10001}
    group = _pods(context, attempt, "head", ports=ports)
    return {
        # No work but the driver's lands on the head.
        "rayStartParams": {
            "num-cpus": "0",
            "dashboard-host": "0.0.0.0",
            **_object_store(context.spec.trainer.head_pod),
        },
        "template": _template(context, group),
    }


def _trainer(context: Context, attempt: int) -> Obj:
    ranks, replicas = ranks_per_replica(context.spec), context.spec.trainer.replicas
    cpus = ranks * context.spec.trainer.threads_per_rank
    offered = {"rljob_trainer": ranks}
    if shares_gpus(context.spec):
        offered["rljob_rollout"] = ranks
    return {
        "groupName": "trainer",
        "replicas": replicas,
        "minReplicas": replicas,
        "maxReplicas": replicas,
        "rayStartParams": _resources(cpus, offered) | _object_store(context.spec.trainer.pod),
        "template": _template(context, _pods(context, attempt, "trainer", gpus=context.spec.trainer.gpus_per_replica)),
    }


def _rollout(context: Context, attempt: int) -> Obj:
    spec = context.spec
    return {
        "groupName": "rollout",
        "replicas": spec.rollout.replicas,
        "minReplicas": 0,
        "maxReplicas": ROLLOUT_MAX,
        "rayStartParams": _resources(spec.trainer.threads_per_rank, {"rljob_rollout": 1})
        | _object_store(spec.rollout.pod),
        "template": _template(context, _pods(context, attempt, "rollout", gpus=spec.rollout.gpus_per_engine)),
    }


def _resources(cpus: int, resources: dict[str, int]) -> dict[str, str]:
    # KubeRay pastes the value into a shell command line, so the JSON carries its own quotes.
    return {"num-cpus": str(cpus), "resources": shlex.quote(json.dumps(resources))}


def _object_store(overrides: PodOverrides) -> dict[str, str]:
    # Ray sizes its object store by the node's memory, and moves it to disk when /dev/shm is smaller than that.
    size = quantity(overrides.shm_size) or 0
    return {"object-store-memory": str(max(MIN_OBJECT_STORE, int(size * OBJECT_STORE_SHARE)))}


def _pods(
    context: Context, attempt: int, group: labels.Group, *, gpus: int = 0, ports: dict[str, int] | None = None
) -> pod.GroupPods:
    spec = context.spec
    overrides = {"head": spec.trainer.head_pod, "trainer": spec.trainer.pod, "rollout": spec.rollout.pod}[group]
    metrics = {"rljob-metrics": spec.tracking.metrics_port} if spec.tracking.metrics_port else {}
    return pod.GroupPods(
        name=group,
        container="ray",
        image=spec.images.trainer or context.settings.trainer_image,
        env=environment.ray(context, group, attempt),
        overrides=overrides,
        requests=HEAD_REQUESTS if group == "head" else WORKER_REQUESTS,
        attempt=attempt,
        ports=(ports or {}) | metrics,
        gpus=gpus,
        # Ray ends everything at SIGTERM. Engines are not needed for a commit.
        pre_stop=None if group == "rollout" else _commit_first(spec.lifecycle.termination_grace_period_seconds),
        token=group == "head",
    )


def _commit_first(grace: int) -> list[str]:
    """The driver is asked to commit and waited for, by the head and by the ranks that it needs for that."""
    return ["python", "-m", "rljob_trainer.cluster.prestop", "--seconds", str(max(1, grace - END_SECONDS))]


def _template(context: Context, group: pod.GroupPods) -> dict[str, Any]:
    template = pod.template(context, group)
    template["spec"]["restartPolicy"] = "Never"
    return template
