"""A whole run that generates while it trains, on CPU."""

import json
import signal
from collections import defaultdict

import pytest

from .conftest import TinyRun

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(900)]


def test_a_killed_run_ends_with_the_right_steps_and_without_groups_that_teach_nothing(tiny: TinyRun) -> None:
    spec = tiny.manifest["spec"]
    spec["placement"] = {"type": "async", "maxStaleness": 2}
    # Many groups of two are of one length, among three.
    spec["rollout"] |= {
        "numRollout": 6, "nSamplesPerPrompt": 2, "dynamicFilter": "nonzero_std",
        "sampling": {"temperature": 1.0, "maxResponseLength": 3, "stop": ["u", "f"]},
    }  # fmt: skip
    spec["checkpoint"] = {"saveInterval": 2, "saveAtEpochEnd": True}
    spec["tracking"]["logCompletions"] = 100
    tiny.run_until(lambda run: len(run.records("rl")) >= 3, signal.SIGKILL)
    ended = tiny.run()
    assert ended.code == 0, ended.stderr
    assert tiny.summary()["total_steps"] == 5 + 6
    records = tiny.records("rl")
    assert records[-1]["rollout"] == 6
    lags = [record["staleness_max"] for record in records]
    assert max(lags) <= 2
    assert any(lag > 0 for lag in lags), "nothing was generated ahead"
    assert sum(record["sampling/groups_dropped"] for record in records) > 0
    rewards: dict[tuple[int, int], set[float]] = defaultdict(set)
    for file in tiny.directory.glob("attempts/*/completions.jsonl"):
        for record in map(json.loads, file.read_text().splitlines()):
            if record["name"] == "train":
                rewards[record["rollout"], record["group"]].add(record["reward"])
    assert rewards
    assert all(len(seen) > 1 for seen in rewards.values()), "trained on a group whose rewards are all the same"


def test_a_filter_that_drops_everything_ends_the_job_by_name(tiny: TinyRun) -> None:
    spec = tiny.manifest["spec"]
    spec["placement"] = {"type": "async"}
    spec["rollout"] |= {"dynamicFilter": "nonzero_std", "maxPromptsPerRollout": 9}
    spec["reward"] = {"functions": [{"name": "length", "args": {"maxLength": 500, "buffer": 1}}]}
    ended = tiny.run()
    assert ended.code == 2, ended.stderr
    assert "spec.rollout.dynamicFilter finds too little" in ended.stderr + json.dumps(tiny.records("error"))
    assert "since the batch before, 7 groups were dropped (7 with mean reward" in ended.stderr
