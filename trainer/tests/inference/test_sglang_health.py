"""The state machine of an engine's health."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rljob_trainer.inference.sglang.health import COMPILING_SECONDS, Health


def test_an_engine_serves_only_after_its_first_weights() -> None:
    health = Health.begin(0.0)
    assert not health.serves
    health = health.on("ready", 50.0)
    assert health.state == "syncing"
    assert not health.serves
    health = health.on("synced", 51.0)
    assert health.serves
    assert not health.on("sync", 60.0).serves


def test_an_engine_that_compiles_for_its_first_requests_is_left_alone() -> None:
    health = Health.begin(0.0).on("ready", 500.0).on("synced", 501.0)
    assert health.overdue(501.0 + COMPILING_SECONDS, 120.0) is None
    assert health.overdue(502.0 + COMPILING_SECONDS, 120.0) == COMPILING_SECONDS + 1
    assert health.overdue(502.0 + COMPILING_SECONDS, 900.0) is None
    warm = health.answer(700.0)
    assert warm.overdue(820.0, 120.0) is None
    assert warm.overdue(829.0, 120.0) == 129.0
    assert warm.alive(800.0).overdue(829.0, 120.0) is None
    assert warm.on("sync", 830.0).on("synced", 831.0).overdue(960.0, 120.0) == 129.0


def test_the_dead_stay_dead_and_say_why() -> None:
    dead = Health.begin(0.0).on("lost", 3.0, "process 7 is gone")
    assert dead.on("lost", 4.0, "again").why == "process 7 is gone"
    assert dead.alive(5.0) == dead
    assert dead.overdue(1e9, 120.0) is None
    assert dead.answer(5.0) == dead
    with pytest.raises(ValueError, match="dead"):
        dead.on("synced", 6.0)


def test_weights_before_the_start_are_refused() -> None:
    with pytest.raises(ValueError, match="starting"):
        Health.begin(0.0).on("sync", 1.0)


@given(st.lists(st.sampled_from(["ready", "sync", "synced", "lost"]), max_size=12))
def test_it_serves_only_right_after_a_sync(events: list[str]) -> None:
    health, last = Health.begin(0.0), ""
    for number, event in enumerate(events):
        try:
            health = health.on(event, float(number))  # type: ignore[arg-type]
        except ValueError:
            continue
        last = event
        assert health.serves == (last == "synced")
