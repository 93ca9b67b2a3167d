"""What is read out of the kernel's tables."""

from __future__ import annotations

import os
import shutil
import socket
from pathlib import Path

from e2e.cluster import apt, strays
from e2e.cluster.cgroups import hierarchies, members
from e2e.cluster.netns import mounts_below

MOUNTS = """\
22 1 0:20 / /proc rw - proc proc rw
30 1 0:25 / /sys/fs/cgroup rw shared:4 - tmpfs tmpfs rw
31 30 0:26 / /sys/fs/cgroup/pids rw shared:5 - cgroup cgroup rw,pids
32 30 0:27 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw
40 1 0:4 net:[4026532] /var/lib/x/netns rw - nsfs nsfs rw
41 1 0:40 / /var/lib/x/run/a\\040b/rootfs rw - overlay overlay rw
42 1 0:41 / /var/lib/xy/other rw - tmpfs tmpfs rw
"""


def test_cgroup_hierarchies_of_both_versions() -> None:
    assert hierarchies(MOUNTS) == [
        (Path("/sys/fs/cgroup/pids"), "cgroup"),
        (Path("/sys/fs/cgroup/unified"), "cgroup2"),
    ]


def test_members_of_a_group_that_is_not_there() -> None:
    assert members(Path("/sys/fs/cgroup/pids/no-such-group")) == set()


def test_mounts_below_a_folder_come_last_first() -> None:
    assert mounts_below(MOUNTS, Path("/var/lib/x")) == ["/var/lib/x/run/a b/rootfs", "/var/lib/x/netns"]


def test_only_sockets_without_a_listener_are_removed(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as live, socket.socket(socket.AF_UNIX) as dead:
        live.bind(str(tmp_path / "live"))
        live.listen()
        dead.bind(str(tmp_path / "dead"))
        dead.close()
        (tmp_path / "file").touch()
        strays.remove_dead_sockets(tmp_path)
        assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "live"]


def test_packages_of_missing_programs() -> None:
    shell = shutil.which("sh")
    assert shell is not None
    wanted = {shell: "dash", "no-such-program": "one", "/no/such/path": "two", "no-such-either": "one"}
    assert apt.missing(wanted) == ["one", "two"]
    assert os.path.isabs(shell)
