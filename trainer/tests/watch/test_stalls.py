"""Who is named as stuck, from pulses and waits alone."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rljob_api.v1alpha1.health import StallLimits
from rljob_trainer.watch.pulse import EVERY_SECONDS, Beat
from rljob_trainer.watch.stalls import DRIVER, Picture, Waiting, stalls
from rljob_trainer.watch.watchdog import LOOK_SECONDS

PROMISED_SECONDS = 120.0
"""A stuck job says within this time who is stuck."""
LIMITS = StallLimits(silent_seconds=30, still_seconds=90, give_up_seconds=90)


def beat(name: str, count: int, still: float = 0.0, work: float = 0.0, pid: int = 7) -> Beat:
    return Beat(name, count, pid, "host", "", still, work, "all_reduce (a.py:3)")


def picture(*rounds: tuple[float, list[Beat]]) -> Picture:
    seen = Picture()
    for now, beats in rounds:
        seen = seen.after({one.name: one for one in beats}, now)
    return seen


def test_the_one_that_is_silent_is_named_and_not_those_who_wait_for_it() -> None:
    rounds = [(float(t), [beat("rank 0", t, still=float(t)), beat("rank 1", min(t, 5))]) for t in range(0, 121, 2)]
    waits = [Waiting("rank 0", "RL step 3", 0.0), Waiting("rank 1", "RL step 3", 0.0)]
    found = stalls(picture(*rounds), waits, 120.0, LIMITS)
    assert [stall.who for stall in found] == ["rank 1"]
    assert found[0].sentence() == (
        "rank 1: RL step 3 for 120 s; no sign of life for 114 s, last at all_reduce (a.py:3)"
    )


def test_a_thread_that_does_not_move_is_named_with_where_it_is() -> None:
    rounds = [(float(t), [beat("rank 0", t, still=float(t))]) for t in range(0, 101, 2)]
    found = stalls(picture(*rounds), [Waiting("rank 0", "loading", 0.0)], 100.0, LIMITS)
    assert [stall.sentence() for stall in found] == [
        "rank 0: loading for 100 s; it has not moved, last at all_reduce (a.py:3)"
    ]


def test_an_engine_stands_still_when_it_makes_no_tokens_whatever_its_thread_does() -> None:
    def engine(work: float) -> list[tuple[float, list[Beat]]]:
        return [(float(t), [beat("engine 0", t, still=999.0, work=work * t)]) for t in range(0, 101, 2)]

    waits = [Waiting("engine 0", "generating", 0.0)]
    assert stalls(picture(*engine(1.0)), waits, 100.0, LIMITS) == []
    assert [stall.who for stall in stalls(picture(*engine(0.0)), waits, 100.0, LIMITS)] == ["engine 0"]


def test_a_directory_that_does_not_answer_is_not_the_ranks_fault() -> None:
    seen = picture((0.0, [beat(DRIVER, 1), beat("rank 0", 1)]), (100.0, []))
    assert [stall.who for stall in stalls(seen, [Waiting("rank 0", "loading", 0.0)], 100.0, LIMITS)] == [
        "the job's directory"
    ]


def test_what_has_no_pulse_is_named_by_its_time_and_a_rank_that_starts_is_not() -> None:
    waits = [Waiting("reward functions", "scoring 8 samples", 0.0), Waiting("rank 0", "starting", 0.0)]
    assert [stall.who for stall in stalls(Picture(), waits, 95.0, LIMITS)] == ["reward functions"]


@given(
    st.lists(st.tuples(st.integers(0, 3), st.integers(0, 50), st.floats(0, 200)), max_size=40),
    st.floats(0, 29),
)
def test_nobody_is_named_who_was_not_waited_for_long(beats: list[tuple[int, int, float]], age: float) -> None:
    seen = Picture()
    for now, (rank, count, still) in enumerate(beats):
        seen = seen.after({f"rank {rank}": beat(f"rank {rank}", count, still)}, float(now))
    end = float(len(beats))
    assert stalls(seen, [], end, LIMITS) == []
    assert stalls(seen, [Waiting("rank 0", "x", end - age)], end, LIMITS) == []


def test_a_process_in_the_place_of_another_begins_anew() -> None:
    seen = picture((0.0, [beat("engine 0", 50)]), (200.0, [beat("engine 0", 1, pid=8)]))
    assert stalls(seen, [Waiting("engine 0", "generating", 0.0)], 210.0, LIMITS) == []


def named_after(who: str, *, silent: bool, offset: float) -> float | None:
    """Seconds from getting stuck until the watchdog, by the shipped limits, names `who`, which has a pulse still or,
    `silent`, none from then on. `offset`: of the watchdog's looks from the pulses."""
    limits, stuck, seen = StallLimits(), 10.0, Picture()
    waits = [Waiting(who, "RL step 3", stuck)]
    now = offset
    while now < stuck + 2 * PROMISED_SECONDS:
        last = min(now, stuck if silent else now) // EVERY_SECONDS * EVERY_SECONDS
        beats = {DRIVER: beat(DRIVER, round(now / LOOK_SECONDS))}
        if who != "reward functions":
            beats[who] = beat(who, int(last), still=max(0.0, last - stuck), work=min(last, stuck))
        seen = seen.after(beats, now)
        if found := stalls(seen, waits, now, limits):
            assert [stall.who for stall in found] == [who]
            return now - stuck
        now += LOOK_SECONDS
    return None


@pytest.mark.parametrize("offset", [0.0, 0.1, 1.0, 1.9])
@pytest.mark.parametrize(
    ("who", "silent"),
    [("rank 0", True), ("rank 0", False), ("engine 1", True), ("engine 1", False), ("reward functions", False)],
)
def test_by_the_shipped_limits_whoever_is_stuck_is_named_within_two_minutes(
    who: str, silent: bool, offset: float
) -> None:
    after = named_after(who, silent=silent, offset=offset)
    assert after is not None
    assert 0.0 < after <= PROMISED_SECONDS
