"""Who may connect to whom under NetworkPolicies: the rules of networking.k8s.io/v1 for ingress, as a pure function.

Without a cluster, for every pair of pods; `e2e/tests/test_rljob_network.py` tries some where policies are enforced.
https://kubernetes.io/docs/concepts/services-networking/network-policies/
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

Obj = dict[str, Any]


@dataclass(frozen=True)
class Pod:
    """A pod as policies see it."""

    namespace: str
    labels: dict[str, str] = field(default_factory=dict)
    namespace_labels: dict[str, str] = field(default_factory=dict)

    @property
    def of_namespace(self) -> dict[str, str]:
        """The namespace's labels; the apiserver puts its name among them."""
        return self.namespace_labels | {"kubernetes.io/metadata.name": self.namespace}


def reachable(policies: Iterable[Obj], source: Pod, target: Pod, port: int, protocol: str = "TCP") -> bool:
    """Whether `source` may open a connection to `port` of `target`."""
    mine = [
        policy["spec"]
        for policy in policies
        if policy["metadata"]["namespace"] == target.namespace
        and "Ingress" in policy["spec"].get("policyTypes", ["Ingress"])
        and matches(policy["spec"]["podSelector"], target.labels)
    ]
    if not mine:
        return True  # what no policy selects is open to all
    return any(
        _from(rule.get("from"), source, target.namespace) and _port(rule.get("ports"), port, protocol)
        for spec in mine
        for rule in spec.get("ingress") or []
    )


def matches(selector: Obj, labels: dict[str, str]) -> bool:
    """Whether a label selector selects these labels; the empty one selects all."""
    known = {"matchLabels", "matchExpressions"}
    if unknown := selector.keys() - known:
        raise ValueError(f"unknown in a selector: {unknown}")
    wanted = selector.get("matchLabels") or {}
    return wanted.items() <= labels.items() and all(_holds(e, labels) for e in selector.get("matchExpressions") or [])


def _holds(expression: Obj, labels: dict[str, str]) -> bool:
    key, operator, values = expression["key"], expression["operator"], expression.get("values") or []
    if operator == "In":
        return labels.get(key) in values
    if operator == "NotIn":
        return labels.get(key) not in values
    if operator in ("Exists", "DoesNotExist"):
        return (key in labels) == (operator == "Exists")
    raise ValueError(f"unknown operator {operator}")


def _from(peers: list[Obj] | None, source: Pod, namespace: str) -> bool:
    return not peers or any(_peer(peer, source, namespace) for peer in peers)


def _peer(peer: Obj, source: Pod, namespace: str) -> bool:
    if unknown := peer.keys() - {"podSelector", "namespaceSelector"}:
        raise ValueError(f"unknown in a peer: {unknown}")
    if "namespaceSelector" in peer:
        if not matches(peer["namespaceSelector"], source.of_namespace):
            return False
    elif source.namespace != namespace:
        return False
    return matches(peer.get("podSelector") or {}, source.labels)


def _port(ports: list[Obj] | None, port: int, protocol: str) -> bool:
    return not ports or any(
        p.get("protocol", "TCP") == protocol and p.get("port", port) <= port <= p.get("endPort", p.get("port", port))
        for p in ports
    )
