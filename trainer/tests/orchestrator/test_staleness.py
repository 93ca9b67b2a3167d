"""The ledger of groups under way: bounded staleness whatever finishes when."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rljob_trainer.rollout.staleness import Ledger


def test_without_staleness_it_is_the_synchronous_loop() -> None:
    ledger = Ledger(batch=2, max_staleness=0)
    ledger.start([0, 1], 0)
    assert ledger.room() == 0
    ledger.finish(1)
    assert ledger.take(0) is None
    ledger.finish(0)
    assert ledger.take(0) == [0, 1]
    assert ledger.room() == 0, "what starts now would be a version old"
    ledger.trained()
    assert ledger.room() == 2


def test_one_step_off_generates_the_next_batch_while_training() -> None:
    ledger = Ledger(batch=2, max_staleness=1)
    ledger.start([0, 1, 2, 3], 0)
    assert ledger.room() == 0
    for number in (2, 0):
        ledger.finish(number)
    assert ledger.take(0) == [0, 2], "what is finished first is trained first"
    assert ledger.room() == 0
    ledger.trained()
    ledger.start([4, 5], 1)
    for number in (4, 5):
        ledger.finish(number)
    assert ledger.take(1) is None, "groups 1 and 3 would be too old at version 2"
    ledger.finish(1)
    assert ledger.take(1) is None
    ledger.finish(3)
    assert ledger.take(1) == [1, 3]
    assert ledger.pending == [4, 5]


def test_a_dropped_group_leaves_its_place() -> None:
    ledger = Ledger(batch=2, max_staleness=0)
    ledger.start([0, 1], 0)
    ledger.drop(1)
    assert (ledger.pending, ledger.room()) == ([0], 1)
    ledger.start([2], 0)
    for number in (0, 2):
        ledger.finish(number)
    assert ledger.take(0) == [0, 2]
    assert ledger.in_training == 2
    ledger.trained()
    assert ledger.in_training == 0
    with pytest.raises(ValueError, match="not under way"):
        ledger.drop(2)


def test_mistakes_are_refused() -> None:
    ledger = Ledger(1, 0)
    ledger.start([7], 0)
    with pytest.raises(ValueError, match="cannot be started"):
        ledger.start([8], 0)
    with pytest.raises(ValueError, match="not under way"):
        ledger.finish(8)
    with pytest.raises(ValueError, match="batches of 0"):
        Ledger(0, 1)


@given(st.integers(1, 4), st.integers(0, 4), st.integers(1, 12), st.integers(0, 2**32), st.floats(0.0, 1.0))
def test_no_group_is_too_old_none_is_lost_and_it_never_stalls(
    batch: int, staleness: int, steps: int, seed: int, patience: float
) -> None:
    rng = random.Random(seed)
    ledger, version, started = Ledger(batch, staleness), 0, 0
    born: dict[int, int] = {}
    running: list[int] = []
    trained: list[int] = []
    training = False
    while version < steps:
        while ledger.room() and started < steps * batch:
            ledger.start([started], version)
            born[started] = version
            running.append(started)
            started += 1
        if training:
            if running and rng.random() < 0.5:
                ledger.finish(running.pop(rng.randrange(len(running))))
                continue
            version, training = version + 1, False
            ledger.trained()
            continue
        chosen = ledger.take(version) if rng.random() < patience or not running else None
        if chosen is None:
            assert running, "everything is finished and there is no batch"
            number = running.pop(rng.randrange(len(running)))
            ledger.finish(number)
            continue
        assert len(chosen) == batch
        assert all(version - born[number] <= staleness for number in chosen)
        trained += chosen
        training = True
    assert sorted(trained) == list(range(steps * batch))
    assert ledger.pending == []
