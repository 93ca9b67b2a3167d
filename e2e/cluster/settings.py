"""Names and addresses of the cluster. All of them lie in its own network namespace, but for HOST_ADDRESS.

RLJOB_CLUSTER_INDEX (0 to 63, 0 unless set) tells clusters on one machine apart: several control planes can be up
beside one another. Only one of them can have a node: kubelets and containerd share folders of the machine.
"""

from __future__ import annotations

import os

INDEX = int(os.environ.get("RLJOB_CLUSTER_INDEX") or 0)
if not 0 <= INDEX < 64:
    raise ValueError(f"RLJOB_CLUSTER_INDEX is {INDEX}; it must lie between 0 and 63")
_SUFFIX = f"-{INDEX}" if INDEX else ""

NAME = f"rljob-e2e{_SUFFIX}"
NODE_NAME = "rljob-node"

# The node's address sits on a bridge without ports; pods are reached by routes, one veth pair each.
NODE_ADDRESS = "10.200.0.1"
POD_CIDR = "10.244.0.0/24"
SERVICE_CIDR = "10.96.0.0/16"
API_SERVICE_ADDRESS = "10.96.0.1"
CLUSTER_DOMAIN = "cluster.local"

# A /30 between the machine and the namespace: the machine reaches the apiserver, the namespace reaches nothing.
HOST_LINK = f"rlj-host{_SUFFIX}"
CLUSTER_LINK = f"rlj-up{_SUFFIX}"
HOST_ADDRESS = f"10.201.255.{4 * INDEX + 1}"
CLUSTER_ADDRESS = f"10.201.255.{4 * INDEX + 2}"
LINK_PREFIX = 30
API_PORT = 6443

NODE_SERVER = f"https://{NODE_ADDRESS}:{API_PORT}"
HOST_SERVER = f"https://{CLUSTER_ADDRESS}:{API_PORT}"

PAUSE_IMAGE = "localhost/rljob-e2e-pause:1"
STORAGE_CLASS = "standard"
VOLUMES = 24

# Programs that Debian packages, and the package of each.
CONTROL_PLANE_PACKAGES = {
    "etcd": "etcd-server",
    "ip": "iproute2",
    "nft": "nftables",
    "nsenter": "util-linux",
    "openssl": "openssl",
}
NODE_PACKAGES = {
    **CONTROL_PLANE_PACKAGES,
    "containerd": "containerd",
    "runc": "runc",
    "conntrack": "conntrack",
    "iptables": "iptables",
    "ipset": "ipset",
    "/usr/lib/cni/ptp": "containernetworking-plugins",
}
IMAGE_PACKAGES = {"buildah": "buildah", "debootstrap": "debootstrap"}
