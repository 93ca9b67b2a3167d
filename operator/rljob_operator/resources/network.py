"""NetworkPolicies: who may open a connection to the pods of a job. Everybody else may not, in any namespace.

Ray pods talk among themselves on ports that Ray picks, so all ports are open between them. From outside come KubeRay
(the dashboard's API alone) and whoever scrapes metrics. The kubelet's probes and `kubectl port-forward` come from the
node and are not subject to policies. What pods connect to is not restricted: models, data and trackers lie anywhere.
"""

from collections.abc import Sequence
from typing import Any

from rljob_api.contract import labels, names

from rljob_operator.kube.objects import NETWORK_POLICY, Obj
from rljob_operator.resources.context import Context

DASHBOARD_PORT = 8265
NAMESPACE_NAME = "kubernetes.io/metadata.name"
"""Label that the apiserver itself puts on every namespace."""


def policies(context: Context) -> list[Obj]:
    """The policies of a job; none when the operator was told to make none."""
    if not context.settings.network_policies:
        return []
    result = [_policy(context, names.pods(context.name), "NotIn", _to_pods(context))]
    if context.spec.retriever:
        result.append(_policy(context, names.retriever(context.name), "In", _to_retriever(context)))
    return result


def _policy(context: Context, name: str, operator: str, ingress: list[Obj]) -> Obj:
    body = context.child(NETWORK_POLICY, name)
    body["spec"] = {
        "podSelector": _selector(context, operator, ["retriever"]),
        "policyTypes": ["Ingress"],
        "ingress": ingress,
    }
    return body


def _to_pods(context: Context) -> list[Obj]:
    settings, port = context.settings, context.spec.tracking.metrics_port
    rules: list[Obj] = [
        {"from": [_ray_pods(context)]},
        {"from": _peers(settings.kuberay_namespaces, settings.kuberay_pod_labels), "ports": [_tcp(DASHBOARD_PORT)]},
    ]
    if port and settings.metrics_namespaces:
        rules.append({"from": _peers(settings.metrics_namespaces), "ports": [_tcp(port)]})
    return rules


def _to_retriever(context: Context) -> list[Obj]:
    retriever = context.spec.retriever
    if retriever is None:
        return []
    # Searches and metrics share a port.
    scrapers = _peers(context.settings.metrics_namespaces) if context.settings.metrics_namespaces else []
    return [{"from": [_ray_pods(context), *scrapers], "ports": [_tcp(retriever.port)]}]


def _ray_pods(context: Context) -> Obj:
    return {"podSelector": _selector(context, "In", labels.RAY_GROUPS)}


def _selector(context: Context, operator: str, roles: Sequence[str]) -> Obj:
    return {
        "matchLabels": {labels.JOB: context.name},
        "matchExpressions": [{"key": labels.ROLE, "operator": operator, "values": list(roles)}],
    }


def _peers(namespaces: Sequence[str], pod_labels: Sequence[str] = ()) -> list[Obj]:
    """One peer: pods with these labels (`key=value`), in these namespaces; empty: in any, with any."""
    of_namespace: dict[str, Any] = {}
    if namespaces:
        of_namespace["matchExpressions"] = [{"key": NAMESPACE_NAME, "operator": "In", "values": list(namespaces)}]
    peer: Obj = {"namespaceSelector": of_namespace}
    if pod_labels:
        peer["podSelector"] = {"matchLabels": dict(label.split("=", 1) for label in pod_labels)}
    return [peer]


def _tcp(port: int) -> Obj:
    return {"protocol": "TCP", "port": port}
