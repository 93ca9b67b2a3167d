"""A rank or an engine that is stopped is named with its stack; the attempt fails, or the engine is replaced."""

import time

import psutil
import pytest
from rljob_trainer.watch.pulse import read

from .conftest import TinyRun, end_session

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(1800)]


def stopped(tiny: TinyRun, who: str) -> int:
    """Start an attempt and stop `who` once reinforcement learning is under way; returns the driver's exit code."""
    tiny.manifest["spec"]["sft"]["numSteps"] = 2
    tiny.manifest["spec"]["rollout"]["numRollout"] = 8
    del tiny.manifest["spec"]["evaluation"]
    tiny.manifest["spec"]["lifecycle"] = {"stall": {"silentSeconds": 15, "giveUpSeconds": 60}}
    process = tiny.start()
    try:
        deadline = time.monotonic() + 900
        while not tiny.records("rl"):
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.02)
        (pulses,) = tiny.directory.glob("attempts/0001-*/pulse")
        worker = psutil.Process(read(pulses)[who].pid)
        worker.suspend()
        while not (tiny.progress()["stalled"] or {}).get("stack"):
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.1)
        said = tiny.progress()["stalled"]
        assert said["who"] == who
        assert "no sign of life" in said["message"]
        with open(said["stack"], encoding="utf-8") as file:
            text = file.read()
        assert "it is stopped (by a signal)" in text
        assert "Thread" in text
        process.wait(timeout=900)
        worker.wait(timeout=30)  # it is killed with the driver; the kernel takes its memory back first
        return process.returncode
    finally:
        end_session(process)


def test_a_stopped_rank_is_named_and_the_next_attempt_goes_on(tiny: TinyRun) -> None:
    assert stopped(tiny, "rank 0") == 1
    told = tiny.progress()
    assert told["message"].startswith("rank 0: ")
    assert told["reason"] == "WorkerStuck"
    ended = tiny.run()
    assert ended.code == 0, ended.stderr
    assert tiny.summary()["steps"] == 10


def test_a_stopped_engine_is_named_and_replaced(tiny: TinyRun) -> None:
    assert stopped(tiny, "engine 0") == 0
    assert tiny.summary()["state"] == "Succeeded"
    assert tiny.progress()["stalled"] is None
