"""The detectors find what they are for, nothing else, and do not depend on what lies outside their windows."""

from hypothesis import given
from hypothesis import strategies as st
from rljob_api.v1alpha1.health import HealthPolicies, HealthThresholds
from rljob_trainer.health.detect import Row, detect, longest_window
from rljob_trainer.health.monitor import Monitor

SMALL = HealthThresholds(
    reward_window=4, entropy_window=3, mismatch_window=2, length_window=3, length_min_tokens=8, reward_ceiling=0.9
)
numbers = st.floats(min_value=-100, max_value=100, allow_nan=False)
maybe = st.none() | numbers
rows = st.lists(st.tuples(maybe, maybe, maybe, maybe), max_size=40).map(
    lambda found: [Row(number, *values) for number, values in enumerate(found)]
)


def names(found: list[Row], thresholds: HealthThresholds = SMALL) -> set[str]:
    return {finding.condition for finding in detect(found, thresholds)}


@given(rows)
def test_only_the_newest_rollouts_count(found: list[Row]) -> None:
    whole = [row for row in found if None not in (row.reward, row.entropy, row.mismatch, row.length)]
    kept = whole[-longest_window(SMALL) :]
    assert detect(whole, SMALL) == detect(kept, SMALL)


@given(rows)
def test_nothing_is_found_before_a_window_is_full_and_the_beginning_is_a_rollout_seen(found: list[Row]) -> None:
    for finding in detect(found, SMALL):
        assert finding.since in {row.rollout for row in found}
        assert finding.message
    assert names(found[:1]) == set()


@given(st.lists(numbers, min_size=8, max_size=30), st.floats(min_value=0.002, max_value=5))
def test_a_reward_that_rises_by_more_than_asked_for_has_not_stalled(noise: list[float], slope: float) -> None:
    rising = [Row(number, reward=number * slope) for number in range(len(noise))]
    assert "RewardStalled" not in names(rising)
    assert "RewardStalled" in names([Row(number, reward=-number * slope) for number in range(len(noise))])


@given(st.floats(min_value=-5, max_value=5))
def test_a_constant_reward_has_stalled_unless_it_is_good_enough(reward: float) -> None:
    assert ("RewardStalled" in names([Row(number, reward=reward) for number in range(8)])) == (reward < 0.9)


@given(st.lists(st.floats(min_value=0, max_value=2), min_size=3, max_size=10))
def test_entropy_and_mismatch_are_means_of_their_windows(values: list[float]) -> None:
    found = names([Row(number, entropy=value, mismatch=value) for number, value in enumerate(values)])
    assert ("EntropyCollapsed" in found) == (sum(values[-3:]) / 3 < SMALL.entropy_min)
    assert ("MismatchHigh" in found) == (sum(values[-2:]) / 2 > SMALL.mismatch_max)


@given(st.floats(min_value=1, max_value=1000), st.floats(min_value=1, max_value=8))
def test_lengths_explode_by_their_ratio_and_never_below_the_least(before: float, ratio: float) -> None:
    lengths = [before] * 3 + [before * ratio] * 3
    found = names([Row(number, length=value) for number, value in enumerate(lengths)])
    mean_before, mean_after = sum(lengths[:3]) / 3, sum(lengths[3:]) / 3
    assert ("ResponseLengthExploding" in found) == (mean_after > 2 * mean_before and mean_after >= 8)


def test_numbers_that_are_not_finite_are_left_out() -> None:
    row = Row.of(3, {"reward": float("nan"), "entropy": float("inf"), "logprob_diff_mean": 0.5, "response_length": 7.0})
    assert row == Row(3, mismatch=0.5, length=7.0)


def test_a_condition_is_new_once_and_a_commit_carries_it_on() -> None:
    policies = HealthPolicies(entropy_collapsed="Warn", thresholds=SMALL)
    monitor = Monitor(policies, {})
    low = {"entropy": 0.001, "reward": 0.0}
    assert [[f.condition for f in monitor.look(number, low)] for number in range(5)] == [
        [], [], ["EntropyCollapsed"], [], [],
    ]  # fmt: skip
    since = monitor.active["EntropyCollapsed"].since
    resumed = Monitor(policies, monitor.to_json())
    assert resumed.look(5, low) == []
    assert resumed.active["EntropyCollapsed"].since == since
    high = {"entropy": 1.0}
    assert [resumed.look(number, high) for number in (6, 7, 8)] == [[], [], []]
    assert not resumed.active  # and what is to be ignored, the reward, was never told
    resumed.forget()
    assert [len(resumed.look(number, low)) for number in (9, 10, 11)] == [0, 0, 1]
