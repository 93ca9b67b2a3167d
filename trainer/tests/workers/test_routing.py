"""Which engine makes which sample."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rljob_trainer.workers.generation import by_group, route

SIZES = st.lists(st.integers(1, 32), max_size=40)


def test_a_group_stays_together() -> None:
    assert by_group(["a", "a", "b", "a", "b"]) == [[0, 1, 3], [2, 4]]


def test_the_least_loaded_engine_is_next() -> None:
    assert route([4, 4, 4, 4], [0, 0]) == [0, 1, 0, 1]
    assert route([4, 4], [10, 0]) == [1, 1]
    with pytest.raises(ValueError, match="no engine"):
        route([1], [])


@given(SIZES, st.integers(1, 8))
def test_no_engine_has_a_whole_group_more_than_another(sizes: list[int], engines: int) -> None:
    loads = [0] * engines
    for size, engine in zip(sizes, route(sizes, [0] * engines), strict=True):
        loads[engine] += size
    assert max(loads) - min(loads) <= max(sizes, default=0)
