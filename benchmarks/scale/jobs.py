"""The jobs: RLJobs, and the RayJobs that the operator makes of them, to be applied bare."""

from typing import Any

from rljob_api.v1alpha1.job import RLJob
from rljob_operator.kube.objects import Obj
from rljob_operator.resources.context import Context
from rljob_operator.resources.rayjob import ray_job
from rljob_operator.settings import Settings

from benchmarks.operator_latency import manifest
from benchmarks.scale.cluster import CLAIM

PODS = 3
"""Pods of a Ray cluster: head, trainer, rollout."""
STEPS = 10


def name(index: int) -> str:
    """Name of a job."""
    return f"job-{index:05d}"


def rl_job(namespace: str, index: int, *, retriever: bool = False) -> Obj:
    """An RLJob."""
    body = manifest(name(index))
    body["metadata"]["namespace"] = namespace
    body["spec"]["storage"] = {"claimName": CLAIM}
    if retriever:
        body["spec"]["rollout"]["generate"] = {"type": "search", "search": {"maxTurns": 2}}
        body["spec"]["retriever"] = {
            "corpus": "corpus.jsonl",
            "index": {"path": "index.faiss"},
            "encoder": {"type": "hashed", "dimension": 64},
        }
    return body


def bare_ray_job(namespace: str, index: int) -> Obj:
    """The RayJob of such an RLJob's first attempt, without owner and without the account that goes with the RLJob."""
    job = RLJob.model_validate(rl_job(namespace, index))
    body = ray_job(Context(job=job, namespace=namespace, uid="", settings=Settings()), 1, None)
    del body["metadata"]["ownerReferences"]
    cluster = body["spec"]["rayClusterSpec"]
    for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
        group["template"]["spec"].pop("serviceAccountName", None)
    return body


def report(**progress: Any) -> dict[str, Any]:
    """A driver's report."""
    base = {"attempt": 1, "stage": "RL", "step": 1, "totalSteps": STEPS, "state": "Running", "exitCode": None}
    return base | progress
