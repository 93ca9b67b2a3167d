"""The network namespace of the cluster: a node address, one on-link cable to the machine, and no way out."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path

from .paths import Paths
from .run import ClusterError, run, succeeds
from .settings import (
    CLUSTER_ADDRESS,
    CLUSTER_LINK,
    HOST_ADDRESS,
    HOST_LINK,
    LINK_PREFIX,
    NODE_ADDRESS,
    POD_CIDR,
    SERVICE_CIDR,
)

# Nothing is forwarded but to pods, so that a name that resolves to an outside address fails at once rather than by
# a time-out; and nothing in the namespace can open a connection to the machine (a reply to kubectl is not new).
_GUARD = f"""
table inet rljob_guard {{
  chain forward {{
    type filter hook forward priority -10; policy accept;
    iifname "{CLUSTER_LINK}" reject
    oifname "{CLUSTER_LINK}" reject
    ip daddr {{ {POD_CIDR}, {SERVICE_CIDR} }} accept
    reject
  }}
  chain output {{
    type filter hook output priority -10; policy accept;
    oifname "{CLUSTER_LINK}" ct state new reject
  }}
}}
"""


def mounts_below(mountinfo: str, folder: Path) -> list[str]:
    """Mount points at or below a folder, in the order in which they can be unmounted."""
    points = [line.split(" ")[4].encode().decode("unicode_escape") for line in mountinfo.splitlines() if line]
    top = str(folder)
    return [point for point in reversed(points) if point == top or point.startswith(f"{top}/")]


def enter(paths: Paths, command: Sequence[str | Path]) -> list[str]:
    """The command, run in the cluster's network."""
    return ["nsenter", f"--net={paths.netns}", "--", *(str(word) for word in command)]


def exists(paths: Paths) -> bool:
    """Whether the namespace is bound to its file."""
    return str(paths.netns) in mounts_below(Path("/proc/self/mountinfo").read_text(), paths.netns)


_PROBE = "import sys, urllib.request as r; r.build_opener(r.ProxyHandler({})).open(sys.argv[1], timeout=2)"


def http_ok(paths: Paths, url: str) -> bool:
    """Whether an address in the cluster's network answers with success."""
    return succeeds(enter(paths, [sys.executable, "-c", _PROBE, url]))


def _inside(paths: Paths, *command: str, stdin: str | None = None) -> None:
    run(enter(paths, command), stdin=stdin, timeout=20)


def _check_range() -> None:
    """Refuse to shadow an address range that this machine uses."""
    listed = run(["ip", "-o", "-4", "route", "show", "match", f"{HOST_ADDRESS}/{LINK_PREFIX}"]).stdout
    used = [line for line in listed.splitlines() if not line.startswith("default")]
    if used:
        raise ClusterError(f"{HOST_ADDRESS}/{LINK_PREFIX} is in use on this machine: {used[0]}")


def create(paths: Paths) -> None:
    """Make the namespace; one that is complete is left as it is."""
    if exists(paths):
        return
    _check_range()
    paths.netns.touch()
    run(["unshare", f"--net={paths.netns}", "true"], timeout=20)
    _inside(paths, "ip", "link", "set", "lo", "up")
    _inside(paths, "ip", "link", "add", "node0", "type", "bridge")
    _inside(paths, "ip", "addr", "add", f"{NODE_ADDRESS}/32", "dev", "node0")
    _inside(paths, "ip", "link", "set", "node0", "up")
    # The kubelet and programs that ask for "the" address want a default route. It leads to a bridge without ports.
    _inside(paths, "ip", "route", "add", "default", "dev", "node0", "src", NODE_ADDRESS)
    _inside(paths, "sysctl", "-q", "-w", "net.ipv4.ip_forward=1")
    _inside(paths, "nft", "-f", "-", stdin=_GUARD)
    _inside(
        paths,
        "ip",
        "link",
        "add",
        CLUSTER_LINK,
        "type",
        "veth",
        "peer",
        "name",
        HOST_LINK,
        "netns",
        str(os.getpid()),
    )
    _inside(paths, "ip", "addr", "add", f"{CLUSTER_ADDRESS}/{LINK_PREFIX}", "dev", CLUSTER_LINK)
    _inside(paths, "ip", "link", "set", CLUSTER_LINK, "up")
    run(["ip", "addr", "add", f"{HOST_ADDRESS}/{LINK_PREFIX}", "dev", HOST_LINK])
    run(["ip", "link", "set", HOST_LINK, "up"])


def host_link_exists() -> bool:
    """Whether the machine's end of the cable is there."""
    return Path("/sys/class/net", HOST_LINK).exists()


def remove(paths: Paths) -> None:
    """Remove the cable and the namespace. (What else is mounted below the state folder goes with `unmount`.)"""
    if host_link_exists():
        run(["ip", "link", "delete", HOST_LINK])
    unmount(paths.netns)


def unmount(folder: Path) -> None:
    """Unmount everything at and below a folder."""
    for point in mounts_below(Path("/proc/self/mountinfo").read_text(), folder):
        done = run(["umount", point], check=False, timeout=30)
        if done.returncode != 0:
            run(["umount", "--lazy", point], timeout=30)
