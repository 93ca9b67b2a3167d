"""A rank or an engine that is stopped is named with its stack; the attempt fails, or the engine is replaced."""

import time
from collections.abc import Callable

import psutil
import pytest
from rljob_trainer.watch.pulse import read

from .conftest import Driver, TinyRun, end_session

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(1800)]


def until(process: Driver, moment: Callable[[], object]) -> None:
    deadline = time.monotonic() + 600
    while not moment():
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.02)


def stop(tiny: TinyRun, process: Driver, who: str) -> psutil.Process:
    """Stop `who`, and wait until it is named with its stack."""
    (pulses,) = tiny.directory.glob("attempts/0001-*/pulse")
    worker = psutil.Process(read(pulses)[who].pid)
    worker.suspend()
    until(process, lambda: (tiny.progress()["stalled"] or {}).get("stack"))
    said = tiny.progress()["stalled"]
    assert said["who"] == who
    assert "no sign of life" in said["message"]
    with open(said["stack"], encoding="utf-8") as file:
        text = file.read()
    assert "it is stopped (by a signal)" in text
    assert "Thread" in text
    return worker


def test_a_stopped_engine_is_replaced_a_stopped_rank_ends_the_attempt(tiny: TinyRun) -> None:
    spec = tiny.manifest["spec"]
    spec["sft"]["numSteps"] = 2
    spec["rollout"]["numRollout"] = 20
    del spec["evaluation"]
    spec["lifecycle"] = {"stall": {"silentSeconds": 8, "giveUpSeconds": 30}}
    process = tiny.start(cold=True)  # it is the raylet that kills a worker which is stopped, as the worker's parent
    try:
        until(process, lambda: tiny.records("rl"))
        engine = stop(tiny, process, "engine 0")
        stood = len(tiny.records("rl"))
        until(process, lambda: len(tiny.records("rl")) > stood)
        assert not engine.is_running()
        assert tiny.progress()["stalled"] is None
        (log,) = tiny.directory.glob("attempts/0001-*/driver.log")
        assert log.read_text().count("placing engine 0") == 2, "replaced once: the new one is not taken for the old"
        rank = stop(tiny, process, "rank 0")
        assert process.wait(timeout=900) == 1
        rank.wait(timeout=30)  # it is killed with the driver; the kernel takes its memory back first
    finally:
        end_session(process)
    told = tiny.progress()
    assert told["message"].startswith("rank 0: ")
    assert told["reason"] == "WorkerStuck"
    ended = tiny.run()
    assert ended.code == 0, ended.stderr
    assert tiny.summary()["steps"] == 22
    assert tiny.progress()["stalled"] is None
