"""A process that is stopped, or stands in one line, is named, and its stack is kept."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from rljob_api.v1alpha1.health import StallLimits
from rljob_trainer.watch import stacks
from rljob_trainer.watch.pulse import read
from rljob_trainer.watch.stalls import Stall
from rljob_trainer.watch.watchdog import Waits, Watchdog

PROGRAM = """
import sys, time
from rljob_trainer.watch.pulse import Pulse

def the_long_wait():
    time.sleep(600)

pulse = Pulse(sys.argv[1], "rank 1", every=0.1)
the_long_wait()
"""


@pytest.fixture
def process(tmp_path: Path) -> Iterator[subprocess.Popen[bytes]]:
    child = subprocess.Popen([sys.executable, "-c", PROGRAM, str(tmp_path / "pulse")])
    deadline = time.monotonic() + 60
    while (beat := read(tmp_path / "pulse").get("rank 1")) is None or "the_long_wait" not in beat.where:
        assert child.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.05)
    yield child
    child.kill()
    child.wait()


class Told:
    def __init__(self) -> None:
        self.stalls: list[tuple[Stall | None, str]] = []
        self.with_stack = threading.Event()
        self.over = threading.Event()

    def __call__(self, stall: Stall | None, stack: str) -> None:
        self.stalls.append((stall, stack))
        (self.over if stall is None else self.with_stack if stack else threading.Event()).set()


def test_a_stopped_process_is_named_with_its_stack_and_given_up(
    process: subprocess.Popen[bytes], tmp_path: Path
) -> None:
    told, waits = Told(), Waits()
    limits = StallLimits(silent_seconds=4, still_seconds=1000, give_up_seconds=5)
    watchdog = Watchdog(tmp_path, limits, told, waits)
    try:
        with waits.waiting(["rank 0", "rank 1"], "RL step 7") as done:
            done("rank 0")
            os.kill(process.pid, signal.SIGSTOP)
            assert told.with_stack.wait(60)
            deadline = time.monotonic() + 60
            while "rank 1" not in waits.lost:
                assert time.monotonic() < deadline
                time.sleep(0.1)
            stall, stack = told.stalls[1]
            assert stall is not None
            assert stall.sentence().startswith("rank 1: RL step 7 for ")
            assert "the_long_wait" in stall.where
            text = Path(stack).read_text()
            assert "it is stopped (by a signal)" in text
            assert "the_long_wait" in text  # py-spy reads what cannot answer
            os.kill(process.pid, signal.SIGCONT)
            assert told.over.wait(60)
            assert waits.lost == {}
    finally:
        watchdog.close()


def test_without_py_spy_the_process_itself_answers(
    process: subprocess.Popen[bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stacks, "_py_spy", lambda pid: None)
    answers = tmp_path / "pulse" / "rank-1.stack"
    assert "in the_long_wait" in stacks.dump(process.pid, str(answers))
    os.kill(process.pid, signal.SIGSTOP)
    while psutil.Process(process.pid).status() != psutil.STATUS_STOPPED:
        time.sleep(0.05)
    said = stacks.dump(process.pid, str(answers))
    assert "it is stopped (by a signal)" in said
    assert "no stack: py-spy is not there" in said


def test_a_process_that_is_gone_is_said_to_be(process: subprocess.Popen[bytes], tmp_path: Path) -> None:
    process.kill()
    process.wait()
    said = stacks.dump(process.pid, str(tmp_path / "none"))
    assert "it is gone" in said
    assert "no stack" in said
