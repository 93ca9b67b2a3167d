"""The state machine of an engine's health."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rljob_trainer.rollout.health import Health, Patience


def test_an_engine_serves_only_after_its_first_weights() -> None:
    health = Health.begin(0.0)
    assert not health.serves
    health = health.on("ready", 50.0)
    assert health.state == "syncing"
    assert not health.serves
    health = health.on("synced", 51.0)
    assert health.serves
    assert not health.on("sync", 60.0).serves


def test_an_engine_that_compiles_is_left_alone() -> None:
    patience = Patience(starting=600.0, serving=120.0, syncing=600.0)
    starting = Health.begin(0.0)
    assert starting.overdue(500.0, patience) is None
    assert starting.overdue(601.0, patience) == 601.0
    serving = starting.on("ready", 500.0).on("synced", 501.0)
    assert serving.overdue(600.0, patience) is None
    assert serving.overdue(630.0, patience) == 129.0
    assert serving.alive(600.0).overdue(630.0, patience) is None


def test_the_dead_stay_dead_and_say_why() -> None:
    dead = Health.begin(0.0).on("lost", 3.0, "process 7 is gone")
    assert dead.on("lost", 4.0, "again").why == "process 7 is gone"
    assert dead.alive(5.0) == dead
    assert dead.overdue(1e9, Patience()) is None
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
