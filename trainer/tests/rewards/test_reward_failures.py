"""What is said of reward functions that fail, and when failing ends the run."""

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from rljob.types import Sample
from rljob_api.errors import UserError
from rljob_api.v1alpha1.reward import RewardFunction, RewardSpec
from rljob_trainer.rewards import RewardAwayError, ScoreReport, score
from rljob_trainer.rewards.failures import ENOUGH, WINDOW, Failures, Fault, given_up, kinds_told

MODULE = """import asyncio
import functools
import json
import os
import sys

import helper_of_rewards


class Speechless(Exception):
    def __str__(self):
        raise ValueError("no text")


def interrupted(sample):
    raise KeyboardInterrupt

def exits(sample):
    sys.exit(3)

def speechless(sample):
    raise Speechless

def in_a_library(sample):
    return json.loads("no json")

def in_a_helper(sample):
    return helper_of_rewards.look(sample)

def wrapping(function):
    @functools.wraps(function)
    def wrapper(*args, **kwargs):
        return function(*args, **kwargs)
    return wrapper

@wrapping
def nothing(sample):
    pass

class Judge:
    def __call__(self, sample):
        return "good"

judge = Judge()

def not_a_number(sample):
    return float("nan")

def own_time_out(sample):
    raise TimeoutError("the database is slow")

async def own_time_out_later(sample):
    await asyncio.sleep(0)
    raise TimeoutError("the service is slow")

async def slow(sample):
    await asyncio.sleep(1000)

def dies(sample):
    os._exit(7)

def long_winded(sample):
    raise ValueError("x" * 100_000)
"""
HELPER = """
def look(sample):
    return {}[sample.response]
"""


def line_of(text: str) -> int:
    return next(number for number, line in enumerate(MODULE.splitlines(), start=1) if text in line)


def at(text: str) -> str:
    return f"rewards_of_user.py:{line_of(text)}"


@pytest.fixture(scope="module")
def hooks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("hooks")
    (folder / "rewards_of_user.py").write_text(MODULE)
    (folder / "helper_of_rewards.py").write_text(HELPER)
    return folder


SAID = {
    "interrupted": ("KeyboardInterrupt", at("raise KeyboardInterrupt")),
    "exits": ("SystemExit: 3", at("sys.exit(3)")),
    "speechless": ("Speechless: its text cannot be had: ValueError", at("raise Speechless")),
    "in_a_library": ("JSONDecodeError: Expecting value", at("json.loads")),
    "in_a_helper": ("KeyError: 'r'", "helper_of_rewards.py:3"),
    "nothing": ("TypeError: a reward must be a number or a dict of numbers, not None", at("@wrapping")),
    "judge": ("TypeError: a reward must be a number or a dict of numbers, not 'good'", at("def __call__")),
    "not_a_number": ("returned nan, not finite numbers", at("def not_a_number")),
    "own_time_out": ("TimeoutError: the database is slow", at("the database is slow")),
    "own_time_out_later": ("TimeoutError: the service is slow", at("the service is slow")),
    "slow": ("the reward function ran out of time", at("async def slow")),
    "dies": ("the reward process was lost: exit code 7", at("def dies")),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", SAID)
def test_what_a_function_does_is_said_with_its_place(name: str, hooks: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(hooks))
    spec = RewardSpec.model_validate(
        {"functions": [{"name": "custom", "function": f"rewards_of_user:{name}"}], "timeoutSeconds": 1.0}
    )
    samples = [Sample("p", [1], response="r", label="x", status="completed") for _ in range(2)]
    report = score(samples, spec)
    text, where = SAID[name]
    assert text in str(samples[0].info["reward_error"])
    assert str(samples[0].info["reward_error"]).endswith(f"({where})")
    (kind,) = report.kinds
    assert kind.endswith(f" at {where}")
    assert report.timeouts == (2 if name == "slow" else 0)
    error = given_up(report, spec.functions, "rollout 0")
    assert isinstance(error, UserError)
    assert f"spec.reward.functions[0] (custom, rewards_of_user:{name}) gives no reward for each of the 2" in str(error)
    assert text in str(error)
    assert where in str(error)


@pytest.mark.slow
def test_a_long_message_is_cut(hooks: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(hooks))
    spec = RewardSpec.model_validate({"functions": [{"name": "custom", "function": "rewards_of_user:long_winded"}]})
    samples = [Sample("p", [1], response="r", label="x")]
    score(samples, spec)
    assert len(str(samples[0].info["reward_error"])) < 1100


def functions(*names: str) -> list[RewardFunction]:
    more: dict[str, dict[str, Any]] = {"custom": {"function": "my:f"}, "remote": {"url": "http://judge/score"}}
    return [RewardFunction.model_validate({"name": name} | more.get(name, {})) for name in names]


VALUE = Fault("ValueError at my.py:3", "ValueError: bad (my.py:3)")
AWAY = Fault("no answer", "http://judge/score did not answer 4 requests", away=True)


def report(*samples: dict[int, Fault], unfinished: int = 0) -> ScoreReport:
    """Of samples with the faults of their functions."""
    made = ScoreReport()
    for number, faults in enumerate(samples):
        made.count(sorted(faults.items()), whole=number >= unfinished, timed_out=False)
    return made


def test_some_failures_end_nothing() -> None:
    assert given_up(report({0: VALUE}, {0: VALUE}, {}), functions("custom"), "rollout 0") is None
    assert given_up(report(), functions("custom"), "rollout 0") is None


def test_a_service_that_is_away_is_no_mistake_of_the_users() -> None:
    error = given_up(report({0: AWAY}, {0: AWAY}), functions("remote"), "rollout 3")
    assert isinstance(error, RewardAwayError)
    assert "spec.reward.functions[0] (remote, http://judge/score) gives no reward for each of the 2 samples" in str(
        error
    )


def test_a_wrong_function_is_found_beside_a_service_that_is_away() -> None:
    both = {0: AWAY, 1: VALUE}
    error = given_up(report(both, both), functions("remote", "custom"), "rollout 0")
    assert isinstance(error, UserError)
    assert "spec.reward.functions[1]" in str(error)
    # Each sample fails, by one or the other: the service may have been all there was.
    error = given_up(report({0: AWAY}, {1: VALUE}), functions("remote", "custom"), "rollout 0")
    assert isinstance(error, RewardAwayError)


def test_samples_that_were_not_generated_to_their_end_prove_nothing() -> None:
    failed = [{0: VALUE}] * 4
    assert given_up(report(*failed, unfinished=4), functions("custom"), "rollout 0") is None
    assert given_up(report(*failed, unfinished=3), functions("custom"), "rollout 0") is None
    assert given_up(report(*failed, unfinished=2), functions("custom"), "rollout 0") is not None


def test_a_verifier_of_ours_fails_by_what_the_policy_writes() -> None:
    refused = Fault("TooLargeError", "TooLargeError: a power of 3e+09 digits is not verified")
    few, many = [{0: refused}] * (ENOUGH - 1), [{0: refused}] * ENOUGH
    assert given_up(report(*few), functions("math"), "rollout 0") is None
    assert isinstance(given_up(report(*many), functions("math"), "rollout 0"), UserError)


def test_as_many_in_a_row_as_a_rollout_has() -> None:
    """Groups are scored one by one where a filter looks at them: a few prove nothing, a rollout's worth does."""
    failures = Failures(functions("custom"), at_once=4)
    failures.scored(report({0: VALUE}, {0: VALUE}), "rollout 0")
    failures.scored(report({}, {0: VALUE}), "rollout 0")
    failures.scored(report({0: VALUE}, {0: VALUE}), "rollout 0")
    assert failures.end_of_rollout("rollout 0").failures == 5
    assert failures.last == (
        "5 of 6 samples of rollout 0 have no reward: 5 × ValueError at my.py:3; 5 of 6 in this attempt"
    )
    with pytest.raises(UserError, match="each of the 4 samples of rollout 1"):
        failures.scored(report({0: VALUE}, {0: VALUE}), "rollout 1")
    failures.end_of_rollout("rollout 1")
    assert failures.last.startswith("2 of 2 samples of rollout 1")


def test_an_evaluation_without_any_reward_has_no_score() -> None:
    failures = Failures(functions("custom"), at_once=100)
    failures.evaluated(report({0: VALUE}, {}), "evaluation held-out/start")
    with pytest.raises(UserError, match="evaluation held-out/final"):
        failures.evaluated(report({0: VALUE}, {0: VALUE}), "evaluation held-out/final")


def test_failures_are_told_of_until_there_were_none_for_a_while() -> None:
    failures = Failures(functions("custom"), at_once=100)
    failures.tell(report({0: VALUE}, {}), "rollout 0")
    for number in range(1, WINDOW):
        failures.tell(report({}, {}), f"rollout {number}")
        assert "1 of 2 samples of rollout 0" in failures.last
    failures.tell(report({}, {}), f"rollout {WINDOW}")
    assert failures.last == ""
    assert (failures.failures, failures.samples) == (1, 2 * (WINDOW + 1))


def test_many_kinds_are_summed_up() -> None:
    assert kinds_told(Counter(a=5, b=3, c=2, d=1, e=1)) == "5 × a, 3 × b, 2 × c, 2 × others"
