"""What happens in a pod before it is taken away: the driver commits, the ranks stay for it."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from rljob_trainer.cluster.prestop import connected, wait_while

ME = {"RLJOB_UID": f"uid-{os.getpid()}", "RLJOB_ATTEMPT": "2"}
# Stands in for the driver's end: a commit that takes a while after SIGTERM; a second SIGTERM would be fatal.
DRIVER = """
import signal, sys, time, pathlib
out = pathlib.Path(sys.argv[2])
def commit(*_):
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    time.sleep(1)
    (out / "committed").touch()
    sys.exit(4)
signal.signal(signal.SIGTERM, commit)
(out / "ready").touch()
time.sleep(600)
"""


def start(out: Path, **variables: str) -> subprocess.Popen[bytes]:
    out.mkdir()
    process = subprocess.Popen(
        [sys.executable, "-c", DRIVER, "rljob_trainer.driver", str(out)], env=os.environ | ME | variables
    )
    while not (out / "ready").exists():
        assert process.poll() is None
        time.sleep(0.02)
    return process


@pytest.fixture
def driver(tmp_path: Path) -> Iterator[subprocess.Popen[bytes]]:
    process = start(tmp_path / "driver")
    yield process
    process.kill()
    process.wait()


def hook(role: str, seconds: float = 60) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [sys.executable, "-m", "rljob_trainer.cluster.prestop", "--seconds", str(seconds)],
        env=os.environ | ME | {"RLJOB_ROLE": role},
        timeout=120,
        check=True,
    )


def test_the_head_goes_after_the_drivers_commit(driver: subprocess.Popen[bytes], tmp_path: Path) -> None:
    other = start(tmp_path / "other", RLJOB_ATTEMPT="1")
    try:
        hook("head")
        assert (tmp_path / "driver/committed").exists()
        assert driver.wait(10) == 4
        assert other.poll() is None, "another attempt's is left alone"
    finally:
        other.kill()
        other.wait()


def test_a_head_without_a_driver_does_not_wait() -> None:
    hook("head", seconds=100)


def test_the_wait_for_a_driver_has_a_limit(driver: subprocess.Popen[bytes]) -> None:
    os.kill(driver.pid, signal.SIGSTOP)
    hook("head", seconds=0.5)
    assert driver.poll() is None


def test_ranks_stay_while_the_head_does() -> None:
    with socket.create_server(("127.0.0.1", 0)) as head:
        port: int = head.getsockname()[1]
        assert not connected(port)
        rank = socket.create_connection(("127.0.0.1", port))
        gcs, _ = head.accept()
        assert connected(port)
        assert not wait_while(lambda: connected(port), 0.3)
        gcs.close()
        assert wait_while(lambda: connected(port), 30)
        rank.close()
