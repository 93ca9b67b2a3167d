"""A whole run that generates while it trains, on CPU."""

import signal

import pytest

from .conftest import TinyRun

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(900)]


def test_an_asynchronous_run_is_killed_and_ends_with_the_right_number_of_steps(tiny: TinyRun) -> None:
    tiny.manifest["spec"]["placement"] = {"type": "async", "maxStaleness": 2}
    tiny.manifest["spec"]["rollout"]["numRollout"] = 6
    tiny.run_until(lambda run: len(run.records("rl")) >= 2, signal.SIGKILL)
    ended = tiny.run()
    assert ended.code == 0, ended.stderr
    assert tiny.summary()["total_steps"] == 5 + 6
    records = tiny.records("rl")
    assert records[-1]["rollout"] == 6
    lags = [record["staleness_max"] for record in records]
    assert max(lags) <= 2
    assert any(lag > 0 for lag in lags), "nothing was generated ahead"
