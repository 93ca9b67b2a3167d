"""Several ranks and engines: the same loop, and numbers that do not depend on how many engines there are."""

import signal

import pytest

from .conftest import TinyRun

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(2400)]


def test_two_ranks_killed_and_resumed_with_another_number_of_engines(tiny: TinyRun) -> None:
    tiny.manifest["spec"]["rollout"]["replicas"] = 1
    tiny.manifest["spec"]["trainer"] |= {"replicas": 2, "numStepsPerRollout": 2}
    straight = TinyRun(tiny.directory / "straight", tiny.manifest)
    straight.directory.mkdir()
    (straight.directory / "world").symlink_to(tiny.directory / "world")
    ended = straight.run()
    assert ended.code == 0, ended.stderr
    assert straight.summary()["total_steps"] == 5 + 4 * 2
    assert straight.summary()["world_size"] == 2
    tiny.manifest["spec"]["rollout"]["replicas"] = 2
    tiny.run_until(lambda run: len(run.records("rl")) >= 2, signal.SIGKILL)
    ended = tiny.run()
    assert ended.code == 0, ended.stderr
    assert tiny.summary()["engines"] == 2
    assert tiny.summary()["weights_digest"] == straight.summary()["weights_digest"]
