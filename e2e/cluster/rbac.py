"""What the cluster's own parts may read."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from .settings import NAME

_GROUP = "rbac.authorization.k8s.io"


def granted(part: str, user: str, verbs: Sequence[str], resources: dict[str, Sequence[str]]) -> list[dict[str, Any]]:
    """A ClusterRole for `part` over resources by API group, and its binding to `user`."""
    name = f"{NAME}:{part}"
    rules = [
        {"apiGroups": [group], "resources": list(kinds), "verbs": list(verbs)} for group, kinds in resources.items()
    ]
    return [
        {"apiVersion": f"{_GROUP}/v1", "kind": "ClusterRole", "metadata": {"name": name}, "rules": rules},
        {
            "apiVersion": f"{_GROUP}/v1",
            "kind": "ClusterRoleBinding",
            "metadata": {"name": name},
            "roleRef": {"apiGroup": _GROUP, "kind": "ClusterRole", "name": name},
            "subjects": [{"apiGroup": _GROUP, "kind": "User", "name": user}],
        },
    ]
