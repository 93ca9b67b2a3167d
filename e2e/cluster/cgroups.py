"""The cluster's control groups: they hold every process of it, so nothing escapes a tear-down.

A daemon's pid can be recycled and a shim outlives its parent; membership of a cgroup is neither forgotten nor reused.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from pathlib import Path

from .run import ClusterError
from .settings import NAME


def hierarchies(mountinfo: str) -> list[tuple[Path, str]]:
    """(mount point, kind) of each cgroup hierarchy of a /proc/self/mountinfo; kind is cgroup or cgroup2."""
    found: list[tuple[Path, str]] = []
    for line in mountinfo.splitlines():
        left, _, right = line.partition(" - ")
        kind = right.split(" ", 1)[0]
        if kind in ("cgroup", "cgroup2"):
            found.append((Path(left.split(" ")[4]), kind))
    return found


def _mounted() -> list[tuple[Path, str]]:
    return hierarchies(Path("/proc/self/mountinfo").read_text())


def version() -> int:
    """2 where the unified hierarchy is the only one, else 1."""
    return 2 if all(kind == "cgroup2" for _, kind in _mounted()) else 1


def tracker() -> Path:
    """The group into which the daemons are put. It is a leaf, as version 2 wants of groups with processes."""
    mounted = _mounted()
    for point, kind in mounted:
        if kind == "cgroup" and point.name == "pids":
            return point / NAME / "daemons"
    for point, kind in mounted:
        if kind == "cgroup2":
            return point / NAME / "daemons"
    raise ClusterError("no cgroup hierarchy is mounted (looked for pids, and for cgroup version 2)")


def create() -> None:
    """Make the cluster's group in every hierarchy."""
    for point, kind in _mounted():
        group = point / NAME
        if kind == "cgroup2" and version() == 2:
            wanted = (point / "cgroup.controllers").read_text().split()
            (point / "cgroup.subtree_control").write_text(" ".join(f"+{name}" for name in wanted))
        group.mkdir(exist_ok=True)
        for setting in (
            "cpuset.cpus",
            "cpuset.mems",
        ):  # version 1 starts these empty, and then refuses processes
            if (group / setting).exists() and not (group / setting).read_text().strip():
                (group / setting).write_text((point / setting).read_text())
        if kind == "cgroup2" and version() == 2:
            (group / "cgroup.subtree_control").write_text(" ".join(f"+{name}" for name in wanted))
    tracker().mkdir(exist_ok=True)


def members(group: Path) -> set[int]:
    """Pids in a group and below it."""
    pids: set[int] = set()
    for folder, _, _ in os.walk(group):
        try:
            pids.update(int(word) for word in (Path(folder) / "cgroup.procs").read_text().split())
        except (FileNotFoundError, OSError):
            continue
    return pids


def processes() -> set[int]:
    """Every process of the cluster."""
    return {pid for point, _ in _mounted() for pid in members(point / NAME)}


def kill_all(timeout: float = 20) -> None:
    """SIGKILL every member until none is left."""
    deadline = time.monotonic() + timeout
    while left := processes():
        if time.monotonic() > deadline:
            raise ClusterError(f"processes that do not die: {sorted(left)}")
        for pid in left:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.05)


def leftovers() -> list[Path]:
    """The cluster's groups that exist, deepest first."""
    return [Path(folder) for point, _ in _mounted() for folder, _, _ in os.walk(point / NAME, topdown=False)]


def remove(timeout: float = 10) -> None:
    """Remove the groups; the kernel may keep one busy for a moment after its last process."""
    deadline = time.monotonic() + timeout
    while groups := leftovers():
        for group in groups:
            try:
                group.rmdir()
            except FileNotFoundError:
                pass
            except OSError as error:
                if time.monotonic() > deadline:
                    raise ClusterError(f"{group}: cannot be removed ({error.strerror})") from error
        time.sleep(0.05)
