"""A machine that is too busy for Ray's own limit."""

from typing import Any

import pytest
from rljob_trainer.workers import placement
from rljob_trainer.workers.placement import START_TRIES, PlacementError, start_local_ray


class Busy:
    """Ray whose node comes up at the n-th try."""

    def __init__(self, comes_up_at: int) -> None:
        self.comes_up_at, self.tries, self.shut_down = comes_up_at, 0, 0

    def init(self, **_: Any) -> None:
        self.tries += 1
        if self.tries < self.comes_up_at:
            raise Exception("The current node timed out during startup. This could happen because …")

    def shutdown(self) -> None:
        self.shut_down += 1


def test_ray_is_started_again_when_it_did_not_come_up_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    ray = Busy(comes_up_at=3)
    monkeypatch.setattr(placement, "ray", ray)
    start_local_ray(ranks=1, engines=1)
    assert (ray.tries, ray.shut_down) == (3, 2)


def test_a_machine_that_never_has_time_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    ray = Busy(comes_up_at=START_TRIES + 1)
    monkeypatch.setattr(placement, "ray", ray)
    with pytest.raises(PlacementError, match="did not start, 4 times in a row: the machine is too busy"):
        start_local_ray(ranks=1, engines=1)
