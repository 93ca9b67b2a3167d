"""SIGKILL at random moments, the same ones each time for a seed: start-up, SFT, rollouts, commits of either kind.

Drivers and their Ray are started from nothing, as `rljob run` starts them, since start-up is one of the moments.
`RLJOB_KILLS` is the number of kills, `RLJOB_KILL_SEED` chooses other moments.
"""

import copy
import os
import random
import signal
import time
from pathlib import Path

import pytest

from .conftest import MANIFEST, TinyRun, end_session

pytestmark = [
    pytest.mark.ray,
    pytest.mark.slow,
    pytest.mark.nightly(reason="random moments find more, the more there are; test_exact_resume kills at those known"),
    pytest.mark.timeout(3600),
]
KILLS = int(os.environ.get("RLJOB_KILLS", "10"))
SEED = os.environ.get("RLJOB_KILL_SEED", "1")


def test_killed_at_random_moments_ends_with_the_same_weights(
    tiny_world: Path, tmp_path: Path, undisturbed: TinyRun
) -> None:
    draw, killed, number = random.Random(SEED), 0, 0
    expected = undisturbed.summary()
    while killed < KILLS:
        number += 1
        directory = tmp_path / f"run-{number}"
        directory.mkdir()
        (directory / "world").symlink_to(tiny_world)
        run = TinyRun(directory, copy.deepcopy(MANIFEST))
        while killed < KILLS and kill_once(run, draw):
            killed += 1
        if not (directory / "summary.json").exists():
            ended = run.run(cold=True)
            assert ended.code == 0, ended.stderr
        summary = run.summary()
        assert summary["weights_digest"] == expected["weights_digest"], f"run {number}, {killed} kills so far"
        assert summary["evaluations"] == expected["evaluations"]


def kill_once(run: TinyRun, draw: random.Random) -> bool:
    """Start an attempt and kill it at a random moment. False when it ended before."""
    run.manifest["spec"]["checkpoint"]["asynchronous"] = draw.random() < 0.5
    while_starting, delay = draw.random() < 0.2, draw.random()
    process = run.start(cold=True)
    try:
        began = time.monotonic()
        while process.poll() is None:
            assert time.monotonic() - began < 600
            if while_starting and time.monotonic() - began > 10 * delay:
                break
            if not while_starting and any(run.records(kind) for kind in ("sft", "evaluation", "rl")):
                time.sleep(2.5 * delay)
                break
            time.sleep(0.005)
        alive = process.poll() is None
        if alive:
            process.send_signal(signal.SIGKILL)
        stderr = process.communicate(timeout=600)[1]
    finally:
        end_session(process)
    if not alive:
        assert process.returncode == 0, stderr
    return alive
