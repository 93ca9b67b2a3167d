from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator

import pytest

from e2e.cluster.paths import Paths
from e2e.cluster.processes import Daemons, Record, alive, start_time


@pytest.fixture
def child() -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen(["sleep", "600"])
    yield process
    process.kill()
    process.wait()


def _started(pid: int) -> int:
    started = start_time(pid)
    assert started is not None
    return started


def test_the_start_time_of_a_process_is_known_and_of_none_is_not() -> None:
    assert start_time(os.getpid()) == start_time(os.getpid())
    assert start_time(2**22 + 1) is None


def test_a_process_that_ended_is_not_alive_even_as_a_zombie(child: subprocess.Popen[bytes]) -> None:
    record = Record("x", child.pid, _started(child.pid))
    assert alive(record)
    child.kill()
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)  # leaves the zombie
    assert not alive(record)


def test_stop_ends_what_was_started(paths: Paths, child: subprocess.Popen[bytes]) -> None:
    daemons = Daemons(paths)
    daemons._save([Record("sleep", child.pid, _started(child.pid))])
    assert daemons.running("sleep")
    daemons.stop()
    assert child.wait() == -15


def test_stop_kills_what_ignores_sigterm(paths: Paths) -> None:
    script = "trap '' TERM; echo ready; while :; do sleep 0.05; done"
    with subprocess.Popen(["/bin/sh", "-c", script], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        daemons = Daemons(paths)
        daemons._save([Record("stubborn", process.pid, _started(process.pid))])
        daemons.stop(timeout=0.5)
        assert process.wait() == -9


def test_a_recycled_pid_is_left_alone(paths: Paths, child: subprocess.Popen[bytes]) -> None:
    daemons = Daemons(paths)
    daemons._save([Record("sleep", child.pid, _started(child.pid) - 1)])
    assert not daemons.running("sleep")
    daemons.stop()
    assert child.poll() is None


def test_stop_ends_only_the_named(paths: Paths, child: subprocess.Popen[bytes]) -> None:
    daemons = Daemons(paths)
    daemons._save([Record("sleep", child.pid, _started(child.pid))])
    daemons.stop(["another"])
    assert daemons.running("sleep")


def test_no_record_is_no_process(paths: Paths) -> None:
    assert Daemons(paths).records() == []
    assert not Daemons(paths).running("etcd")
    Daemons(paths).stop()
