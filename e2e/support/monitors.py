"""Scrape configurations as the Prometheus operator makes them of PodMonitors, for a Prometheus outside the cluster.

It reaches the pods' ports through `kubectl proxy`, that is, through the apiserver: this works wherever kubectl does,
and whatever the network of the pods is.
"""

import contextlib
import os
import re
import subprocess
from collections.abc import Iterator
from typing import Any

from e2e.support.discovery import META, POD, plain
from e2e.support.kubectl import Kubectl

Relabel = dict[str, Any]
_TERMS = {
    "Exists": ("labelpresent_", "keep"),
    "DoesNotExist": ("labelpresent_", "drop"),
    "In": ("label_", "keep"),
    "NotIn": ("label_", "drop"),
}


@contextlib.contextmanager
def apiserver_proxy(kubectl: Kubectl) -> Iterator[str]:
    """The address of this machine at which `kubectl proxy` serves the apiserver."""
    command = ["kubectl", "proxy", "--port=0"]
    env = os.environ | {"KUBECONFIG": kubectl.kubeconfig}
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=env) as process:
        try:
            assert process.stdout is not None
            said = process.stdout.readline()
            found = re.search(r"127\.0\.0\.1:\d+", said)
            assert found, f"kubectl proxy: {said.strip()}"
            yield found[0]
        finally:
            process.terminate()


def scrape_configs(monitors: list[dict[str, Any]], discovery: str, apiserver: str) -> list[dict[str, Any]]:
    """One for each endpoint of each PodMonitor. Raises ValueError for keys that are not known here.

    discovery: URL of `discovery.serving`. apiserver: host and port of `apiserver_proxy`.
    """
    return [
        {
            "job_name": f"podMonitor/{monitor['metadata']['namespace']}/{monitor['metadata']['name']}/{number}",
            "http_sd_configs": [{"url": discovery, "refresh_interval": "2s"}],
            "relabel_configs": [*_of_endpoint(monitor, endpoint), *_through(apiserver)],
        }
        for monitor in monitors
        for number, endpoint in enumerate(monitor["spec"]["podMetricsEndpoints"])
    ]


def _of_endpoint(monitor: dict[str, Any], endpoint: dict[str, Any]) -> list[Relabel]:
    """Which targets an endpoint chooses, and their labels."""
    spec = monitor["spec"]
    known = {"selector", "namespaceSelector", "podMetricsEndpoints", "podTargetLabels"}
    if unknown := (set(endpoint) - {"port", "interval"}) | (set(spec) - known):
        raise ValueError(f"PodMonitor {monitor['metadata']['name']}: {sorted(unknown)} are not translated here")
    namespaces = spec.get("namespaceSelector") or {"matchNames": [monitor["metadata"]["namespace"]]}
    return [
        *([] if namespaces.get("any") else [_when(f"{META}namespace", _one_of(namespaces["matchNames"]))]),
        *_chosen(spec["selector"]),
        _when(f"{POD}container_port_name", re.escape(endpoint["port"])),
        _when(f"{POD}phase", "Failed|Succeeded", "drop"),
        {"source_labels": [f"{META}namespace"], "target_label": "namespace"},
        {"source_labels": [f"{POD}name"], "target_label": "pod"},
        {"source_labels": [f"{POD}container_name"], "target_label": "container"},
        *(
            {"source_labels": [f"{POD}label_{plain(label)}"], "target_label": plain(label)}
            for label in spec.get("podTargetLabels", [])
        ),
        {"target_label": "endpoint", "replacement": endpoint["port"]},
    ]


def _chosen(selector: dict[str, Any]) -> list[Relabel]:
    """Which pods a label selector chooses."""
    rules = [_when(f"{POD}label_{plain(name)}", re.escape(it)) for name, it in selector.get("matchLabels", {}).items()]
    for term in selector.get("matchExpressions", []):
        prefix, action = _TERMS[term["operator"]]
        rules.append(_when(f"{POD}{prefix}{plain(term['key'])}", _one_of(term.get("values") or ["true"]), action))
    return rules


def _one_of(values: list[str]) -> str:
    return "|".join(map(re.escape, values))


def _when(label: str, regex: str, action: str = "keep") -> Relabel:
    return {"source_labels": [label], "regex": regex, "action": action}


def _through(apiserver: str) -> list[Relabel]:
    """The pod's own address stays the label `instance`; what is called is the apiserver."""
    place = [f"{META}namespace", f"{POD}name", f"{POD}container_port_number"]
    path = "/api/v1/namespaces/$1/pods/$2:$3/proxy/metrics"
    return [
        {"source_labels": ["__address__"], "target_label": "instance"},
        {"source_labels": place, "regex": "(.+);(.+);(.+)", "target_label": "__metrics_path__", "replacement": path},
        {"target_label": "__address__", "replacement": apiserver},
    ]
