"""Debian packages the cluster needs."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping

from .run import ClusterError, run, say


def missing(programs: Mapping[str, str]) -> list[str]:
    """Packages whose program is not there; programs are looked up on PATH and in the sbin folders."""
    path = os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/sbin"])
    return sorted({package for program, package in programs.items() if shutil.which(program, path=path) is None})


def ensure(programs: Mapping[str, str]) -> None:
    """Install what is missing by apt-get."""
    packages = missing(programs)
    if not packages:
        return
    if shutil.which("apt-get") is None or os.geteuid() != 0:
        raise ClusterError(f"missing packages (install them, or run as root on Debian): {' '.join(packages)}")
    say(f"installing {' '.join(packages)}")
    env = {"DEBIAN_FRONTEND": "noninteractive"}
    run(["apt-get", "update", "-qq"], env=env, timeout=300)
    run(["apt-get", "install", "-y", "--no-install-recommends", *packages], env=env, timeout=600)
    if still := missing(programs):
        raise ClusterError(f"installed, yet not found: {' '.join(still)}")
