"""CoreDNS, bound to the node's address: names of the cluster, and a plain "no such name" for all others."""

from __future__ import annotations

from typing import Any

from . import pki
from .binaries import program
from .kubectl import Kubectl
from .netns import http_ok
from .paths import Paths
from .processes import Daemons
from .rbac import granted
from .run import write
from .settings import CLUSTER_DOMAIN, NODE_ADDRESS

_USER = "system:coredns"
_READY = "127.0.0.1:8181"


def render_corefile(paths: Paths) -> str:
    """The Corefile. Short lifetimes: tests create and delete Services all the time."""
    return f"""{CLUSTER_DOMAIN}:53 in-addr.arpa:53 {{
  bind {NODE_ADDRESS}
  errors
  ready {_READY}
  kubernetes {CLUSTER_DOMAIN} in-addr.arpa {{
    kubeconfig {paths.config / "coredns.kubeconfig"}
    ttl 2
  }}
  loadbalance
}}
.:53 {{
  bind {NODE_ADDRESS}
  errors
  template ANY ANY {{
    rcode NXDOMAIN
  }}
}}
"""


def grants() -> list[dict[str, Any]]:
    """Read access to what names are made of."""
    return granted(
        "coredns",
        _USER,
        ["list", "watch"],
        {
            "": ["endpoints", "services", "pods", "namespaces"],
            "discovery.k8s.io": ["endpointslices"],
        },
    )


def start(paths: Paths, daemons: Daemons, kubectl: Kubectl) -> None:
    """Start CoreDNS and wait until it knows the cluster's Services."""
    kubectl.apply(grants())
    pki.kubeconfig(paths, "coredns")
    corefile = write(paths.config / "Corefile", render_corefile(paths))
    daemons.start("coredns", [program(paths, "coredns"), "-conf", corefile])
    daemons.wait_ready("coredns", lambda: http_ok(paths, f"http://{_READY}/ready"))
