"""A job in a few fields, as `status`, `top` and `submit` show it."""

from datetime import UTC, datetime
from typing import Any

from pydantic import ValidationError
from rljob_api.rules.arithmetic import total_gpus
from rljob_api.v1alpha1.job import RLJob

Obj = dict[str, Any]
GROUPS = ("head", "trainer", "rollout", "retriever")
FINISHED = ("Succeeded", "Failed")


def brief(job: Obj) -> dict[str, Any]:
    """The fields, for people and programs."""
    status = job.get("status") or {}
    return {
        "name": job["metadata"]["name"],
        "namespace": job["metadata"].get("namespace"),
        "phase": status.get("phase", "Pending"),
        "stage": status.get("stage"),
        "step": status.get("progress"),
        "reward": status.get("reward"),
        "tokensPerSecond": status.get("tokensPerSecond"),
        "goodput": status.get("goodput"),
        "gpus": gpus(job),
        "attempt": status.get("attempt", 0),
        "failedAttempts": status.get("failedAttempts", 0),
        "lastCommit": (status.get("lastCommit") or {}).get("name"),
        "lastProgressTime": status.get("lastProgressTime"),
        "evaluation": status.get("evaluation") or {},
        "pods": {name: status[name] for name in GROUPS if (status.get(name) or {}).get("desired")},
        "message": status.get("message"),
        "conditions": status.get("conditions") or [],
        "created": job["metadata"].get("creationTimestamp"),
    }


def gpus(job: Obj) -> int | None:
    """GPUs that the job asks for; None where this version does not understand its spec."""
    try:
        return total_gpus(RLJob.model_validate({key: job[key] for key in job if key != "status"}).spec)
    except (ValidationError, ValueError):
        return None


def age(moment: str | None) -> str:
    """Time since an RFC 3339 moment, as kubectl writes it."""
    if not moment:
        return "–"
    seconds = int((datetime.now(UTC) - datetime.fromisoformat(moment)).total_seconds())
    for size, unit in ((86400, "d"), (3600, "h"), (60, "m")):
        if seconds >= 2 * size:
            return f"{seconds // size}{unit}"
    return f"{max(seconds, 0)}s"
