"""The retriever: a Deployment that serves what the preparation has made, and its Service."""

import hashlib
import json
from typing import Any

from rljob_api.contract import labels, names
from rljob_api.contract.job_document import MANIFEST_KEY, spelt_out
from rljob_api.v1alpha1.retriever import RetrieverSpec

from rljob_operator.kube.objects import AUTOSCALER, DEPLOYMENT, DISRUPTION_BUDGET, SERVICE, Obj
from rljob_operator.resources import environment, pod
from rljob_operator.resources.context import CONFIG_DIR, Context

REQUESTS = {"cpu": "100m", "memory": "512Mi"}
"""What a retriever pod asks for when the user says nothing."""


def deployment(context: Context, retriever: RetrieverSpec, *, running: bool) -> Obj:
    """The Deployment; without pods while the job is suspended or finished."""
    image = context.spec.images.retriever or context.settings.retriever_image
    arguments = ["--job", f"{CONFIG_DIR}/{MANIFEST_KEY}", "--dir", context.directory]
    env = environment.merged(environment.job(context), [environment.value("OMP_NUM_THREADS", 1)])
    group = pod.GroupPods(
        name="retriever",
        container="retriever",
        image=image,
        env=env,
        overrides=retriever.pod,
        requests=REQUESTS,
        command=_module("rljob_trainer.retriever", [*arguments, "--host", "0.0.0.0", "--port", str(retriever.port)]),
        ports={"http": retriever.port},
        probes=_probes(retriever),
        gpus=retriever.gpus,
        reads_only=True,
    )
    template = pod.template(context, group)
    template["metadata"].setdefault("annotations", {})[labels.CONFIG_DIGEST] = _digest(context)
    body = context.child(DEPLOYMENT, names.retriever(context.name), "retriever")
    body["spec"] = {
        # Under an autoscaler the number is its own, but for none.
        **({} if running and retriever.autoscaling else {"replicas": retriever.replicas if running else 0}),
        "revisionHistoryLimit": 1,
        "progressDeadlineSeconds": max(1, int(retriever.startup_timeout_seconds)),
        "selector": {"matchLabels": {labels.JOB: context.name, labels.ROLE: "retriever"}},
        "template": template,
    }
    return body


def autoscaler(context: Context, retriever: RetrieverSpec) -> Obj | None:
    """The HorizontalPodAutoscaler, if one is asked for; it rests while the Deployment has no pods."""
    if (scaling := retriever.autoscaling) is None:
        return None
    name = names.retriever(context.name)
    body = context.child(AUTOSCALER, name, "retriever")
    target = {"type": "Utilization", "averageUtilization": scaling.target_cpu_utilization_percentage}
    body["spec"] = {
        "scaleTargetRef": {"apiVersion": DEPLOYMENT.api_version, "kind": DEPLOYMENT.kind, "name": name},
        "minReplicas": scaling.min_replicas,
        "maxReplicas": scaling.max_replicas,
        "metrics": [{"type": "Resource", "resource": {"name": "cpu", "target": target}}],
    }
    return body


def disruption_budget(context: Context, retriever: RetrieverSpec) -> Obj | None:
    """Where several pods serve, a drain of nodes takes one after the other."""
    scaling = retriever.autoscaling
    if (scaling.max_replicas if scaling else retriever.replicas) < 2:
        return None
    body = context.child(DISRUPTION_BUDGET, names.retriever(context.name), "retriever")
    body["spec"] = {
        "maxUnavailable": 1,
        "selector": {"matchLabels": {labels.JOB: context.name, labels.ROLE: "retriever"}},
    }
    return body


def service(context: Context, retriever: RetrieverSpec) -> Obj:
    """The Service in front of the retriever pods."""
    body = context.child(SERVICE, names.retriever(context.name), "retriever")
    body["spec"] = {
        "selector": {labels.JOB: context.name, labels.ROLE: "retriever"},
        "ports": [{"name": "http", "port": retriever.port, "targetPort": "http", "protocol": "TCP"}],
    }
    return body


def _module(module: str, arguments: list[str]) -> list[str]:
    return ["python", "-m", module, *arguments]


def _probes(retriever: RetrieverSpec) -> dict[str, Any]:
    ready = {"httpGet": {"path": "/readyz", "port": "http"}, "timeoutSeconds": 5}
    tries = max(1, int(retriever.startup_timeout_seconds / 2))
    return {
        # Loading a large index takes long: nothing is killed before the user's own limit.
        "startupProbe": ready | {"periodSeconds": 2, "failureThreshold": tries},
        "readinessProbe": ready | {"periodSeconds": 5, "failureThreshold": 3},
        "livenessProbe": {
            "httpGet": {"path": "/healthz", "port": "http"},
            "timeoutSeconds": 10, "periodSeconds": 20, "failureThreshold": 3,
        },
    }  # fmt: skip


def _digest(context: Context) -> str:
    """Changes with what a running retriever would not notice: its section, the preparation and the user's modules."""
    spec = spelt_out(context.spec)  # a field that is new and not used restarts no retriever
    read = {key: spec.get(key) for key in ("retriever", "code")} | {"prepare": spec["data"].get("prepare")}
    read["retriever"] = {
        k: v for k, v in (read["retriever"] or {}).items() if k not in ("replicas", "autoscaling", "pod")
    }
    return hashlib.sha256(json.dumps(read, sort_keys=True).encode()).hexdigest()[:16]
