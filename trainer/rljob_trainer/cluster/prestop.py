"""A pod of an attempt is being taken away (preStop): the driver commits first.

`python -m rljob_trainer.cluster.prestop --seconds N` runs in the container before SIGTERM reaches Ray, which would end
everything at once. On the head it asks the driver to suspend (SIGTERM) and waits until it has ended. The ranks, which
are needed for the commit, stay for as long as the head does: while a connection to its GCS stands. (The head's name is
of no use: its Service goes with the cluster.) Neither waits for longer than N seconds, which the kubelet would not do
either.
"""

import argparse
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from rljob_api.contract import environment_variables as variables

DRIVER = b"rljob_trainer.driver"
GCS_PORT = 6379
_ESTABLISHED = "01"
_EVERY = 0.2
_SAME = (variables.UID, variables.ATTEMPT)
"""Variables that tell this attempt's driver from others, where the processes of a node are seen."""


def drivers(proc: Path = Path("/proc")) -> list[int]:
    """Processes of this attempt's driver."""
    wanted = {f"{name}={os.environ.get(name, '')}".encode() for name in _SAME}
    return [pid for pid, words, variables in _processes(proc) if DRIVER in words and wanted <= variables]


def _processes(proc: Path) -> Iterator[tuple[int, list[bytes], set[bytes]]]:
    """Process id, command line and environment of the processes that may be read."""
    for folder in proc.iterdir():
        if not folder.name.isdigit():
            continue
        try:
            words = (folder / "cmdline").read_bytes().split(b"\0")
            variables = set((folder / "environ").read_bytes().split(b"\0"))
        except OSError:  # gone meanwhile, or another user's
            continue
        yield int(folder.name), words, variables


def connected(port: int = GCS_PORT, tables: Path = Path("/proc/net")) -> bool:
    """Whether a TCP connection from here to this remote port stands."""
    for name in ("tcp", "tcp6"):
        table = tables / name
        if not table.exists():
            continue
        for line in table.read_text().splitlines()[1:]:
            _, _, remote, state, *_ = line.split()
            if state == _ESTABLISHED and int(remote.rpartition(":")[2], 16) == port:
                return True
    return False


def wait_while(holds: Callable[[], object], seconds: float) -> bool:
    """Wait until it holds no more; False when that takes longer."""
    end = time.monotonic() + seconds
    while holds():
        if time.monotonic() > end:
            return False
        time.sleep(_EVERY)
    return True


def ask(pids: list[int]) -> None:
    """Ask processes to suspend, once: a second signal would end them at once."""
    for pid in pids:
        try:
            os.kill(pid, signal.SIGTERM)
        except ProcessLookupError:
            continue


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, required=True)
    seconds: float = parser.parse_args().seconds
    if os.environ.get(variables.ROLE) == "head":
        ask(drivers())
        wait_while(drivers, seconds)
    else:
        wait_while(connected, seconds)


if __name__ == "__main__":
    main()
