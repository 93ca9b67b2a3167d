"""Which commit a rollback goes to, which ones are kept for it, and when its record stands."""

from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st
from rljob_api.v1alpha1.health import EarlyStop
from rljob_trainer.checkpoint import Commit
from rljob_trainer.health.early_stop import measured, reached
from rljob_trainer.health.rollback import Rollback, before, guarded, rollbacks, standing


def commit(attempt: int, step: int) -> Commit:
    return Commit(Path(f"step-{step:06d}"), f"{attempt:04d}-aaaaaaaa", step, 1)


@given(st.integers(0, 60), st.integers(1, 20), st.integers(1, 7), st.integers(1, 4))
def test_a_commit_from_before_the_window_is_always_there(rollouts: int, window: int, interval: int, keep: int) -> None:
    """Commits every `interval` rollouts, the newest `keep` and the guarded ones kept."""
    there: list[int] = []
    for made in range(0, rollouts + 1, interval):
        there.append(made)
        there = sorted({*there[-keep:], *guarded(there, made, window)})
        oldest_wanted = made - window
        if oldest_wanted >= 0:
            assert min(there) <= oldest_wanted
        assert len(there) <= keep + 2
        assert min(there) >= made - 2 * window - 2 * interval  # what is far too old goes


def test_the_newest_healthy_commit_before_the_trouble() -> None:
    one, two, three = commit(1, 10), commit(1, 20), commit(2, 30)
    found = [(one, 1, True), (two, 2, False), (three, 3, True)]
    assert before(found, 4) is three
    assert before(found, 3) is one
    assert before(found, 1) is None
    assert before([(one, 0, True)], 0) is one  # nothing older can be had than what precedes the first rollout


def test_a_record_stands_until_a_later_attempt_has_committed(tmp_path: Path) -> None:
    (tmp_path / "attempts/0002-bbbbbbbb").mkdir(parents=True)
    assert rollbacks(tmp_path) == []
    written = Rollback(1, "0002-bbbbbbbb", "0001-aaaaaaaa/commits/step-000010", "RL", {"position": 3}, "why")
    written.write(tmp_path)
    records = rollbacks(tmp_path)
    assert records == [written]
    assert standing(commit(2, 40), records) == written  # what the operator may still believe in
    assert standing(commit(1, 20), records) == written
    assert standing(None, records) == written
    assert standing(commit(3, 15), records) is None
    assert standing(commit(1, 20), []) is None


def test_targets() -> None:
    score = EarlyStop(metric="evaluation/held-out", at_least=0.9)
    scores = {"held-out": {"score": 0.9, "pass@4": 0.95}}
    assert measured(score, {"reward": 1.0}, scores) == 0.9
    assert measured(score, {"reward": 1.0}, {}) is None
    assert measured(EarlyStop(metric="evaluation/held-out/pass@4", at_least=1), {}, scores) == 0.95
    assert measured(EarlyStop(metric="reward/em", at_least=1), {"reward/em": 0.5}, {}) == 0.5
    assert reached(score, 0.9)
    assert not reached(score, 0.89)
    assert reached(EarlyStop(metric="kl", at_most=0.1), 0.05)
