"""`python -m e2e.cluster`: a real Kubernetes cluster on this machine."""

from __future__ import annotations

import argparse
import json
import os
import shlex
import signal
import sys
from pathlib import Path

from . import node_images, volumes
from .cluster import Cluster
from .paths import Paths
from .run import ClusterError


def parser() -> argparse.ArgumentParser:
    """The command line."""
    top = argparse.ArgumentParser(prog="python -m e2e.cluster", description=__doc__)
    commands = top.add_subparsers(dest="command", required=True)
    up = commands.add_parser("up", help="bring the cluster up (again: no harm)")
    up.add_argument("--control-plane-only", action="store_true", help="etcd, apiserver, controller-manager alone")
    commands.add_parser("down", help="take everything away but the caches")
    commands.add_parser("status", help="print what runs, as JSON; exit code 3 when no cluster is up")
    commands.add_parser("kubeconfig", help="print the path of the admin's kubeconfig")
    commands.add_parser("env", help="print export lines: KUBECONFIG, and PATH with kubectl and helm")
    commands.add_parser("volumes", help="offer the volumes of deleted claims anew")
    load = commands.add_parser("load-image", help="import image archives into the node")
    load.add_argument("archives", nargs="+", type=Path, metavar="TAR")
    return top


def _terminate(number: int, _frame: object) -> None:
    raise SystemExit(128 + number)  # so that a bring-up cleans up after itself


def main(arguments: list[str] | None = None) -> int:
    """Run one command; the exit code."""
    options = parser().parse_args(arguments)
    cluster = Cluster(Paths.from_env())
    signal.signal(signal.SIGTERM, _terminate)
    try:
        return _run(options, cluster)
    except ClusterError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


def _run(options: argparse.Namespace, cluster: Cluster) -> int:
    match options.command:
        case "up":
            cluster.up(control_plane_only=options.control_plane_only)
        case "down":
            cluster.down()
        case "status":
            status = cluster.status()
            print(json.dumps(status, indent=1))
            return 0 if status["mode"] else 3
        case "kubeconfig":
            _need_up(cluster)
            print(cluster.paths.admin_kubeconfig)
        case "env":
            _need_up(cluster)
            print(f"export KUBECONFIG={shlex.quote(str(cluster.paths.admin_kubeconfig))}")
            print(f"export PATH={shlex.quote(str(cluster.tools()))}{os.pathsep}$PATH")
        case "volumes":
            _need_up(cluster)
            volumes.refill(cluster.paths, cluster.kubectl())
        case "load-image":
            _need_up(cluster)
            for file in options.archives:
                node_images.load_archive(cluster.paths, cluster.containerd, file)
        case _:
            raise AssertionError(options.command)
    return 0


def _need_up(cluster: Cluster) -> None:
    if cluster.mode() is None:
        raise ClusterError("no cluster is up: run `up` first")


if __name__ == "__main__":
    sys.exit(main())
