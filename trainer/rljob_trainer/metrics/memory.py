"""Peak memory of a process and all that it started, sampled from /proc."""

import os
import threading
from pathlib import Path

SAMPLE_SECONDS = 5.0


def tree_bytes(root: int) -> int:
    """Memory of `root` and its descendants in bytes: proportional set sizes, so that shared pages count once.

    0 where /proc is missing. Processes that end meanwhile are left out.
    """
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            # The command name may hold spaces and brackets: the parent is the second field after the last bracket.
            parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
        except (OSError, IndexError, ValueError):
            continue
        children.setdefault(parent, []).append(int(entry.name))
    total, waiting = 0, [root]
    while waiting:
        process = waiting.pop()
        waiting += children.get(process, [])
        total += _bytes_of(process)
    return total


def _bytes_of(process: int) -> int:
    try:
        for line in Path(f"/proc/{process}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) * 1024
    except (OSError, ValueError, IndexError):
        return 0
    return 0


class PeakMemory:
    """Samples the memory of a process tree in the background; `peak` is the highest sum seen, in bytes."""

    def __init__(self, root: int | None = None, interval: float = SAMPLE_SECONDS) -> None:
        self.peak = 0
        self._root = root or os.getpid()
        self._interval = interval
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="memory", daemon=True)
        self._thread.start()

    def close(self) -> int:
        """Take a last sample and stop. Returns the peak."""
        self._stop.set()
        self._thread.join(timeout=self._interval + 5.0)
        self.peak = max(self.peak, tree_bytes(self._root))
        return self.peak

    def _run(self) -> None:
        while not self._stop.wait(self._interval):
            self.peak = max(self.peak, tree_bytes(self._root))
