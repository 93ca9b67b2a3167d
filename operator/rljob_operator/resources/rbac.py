"""What the driver may do in the cluster: report, hear requests, hold its Lease. Each by the name of one object."""

from typing import Any

from rljob_api.contract import names

from rljob_operator.kube.objects import ROLE, ROLE_BINDING, SERVICE_ACCOUNT, Obj
from rljob_operator.resources.context import Context


def service_account(context: Context) -> Obj:
    """The driver's account. Only the head's pod mounts a token of it."""
    body = context.child(SERVICE_ACCOUNT, names.driver(context.name))
    body["automountServiceAccountToken"] = False
    return body


def role(context: Context) -> Obj:
    """The driver's rights. A Role by name cannot grant create, so the operator makes the objects first."""
    body = context.child(ROLE, names.driver(context.name))
    body["rules"] = [
        _rule("", "configmaps", names.progress(context.name), "get", "patch", "update"),
        _rule("", "configmaps", names.control(context.name), "get"),
        _rule("coordination.k8s.io", "leases", names.driver(context.name), "get", "patch", "update"),
    ]
    return body


def role_binding(context: Context) -> Obj:
    """Binds the driver's account to its Role."""
    body = context.child(ROLE_BINDING, names.driver(context.name))
    account = context.spec.trainer.head_pod.service_account_name or names.driver(context.name)
    body["roleRef"] = {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": names.driver(context.name)}
    body["subjects"] = [{"kind": "ServiceAccount", "name": account, "namespace": context.namespace}]
    return body


def _rule(group: str, resource: str, name: str, *verbs: str) -> dict[str, Any]:
    return {"apiGroups": [group], "resources": [resource], "resourceNames": [name], "verbs": list(verbs)}
