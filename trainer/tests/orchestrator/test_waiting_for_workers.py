"""A worker that dies, hangs or fails is found within a limit and named."""

import asyncio
import os
import time
from collections.abc import Iterator

import pytest
import ray
from rljob_api.errors import UserError
from rljob_trainer.orchestrator.stop import Stop, StopFlag
from rljob_trainer.workers.engine_pool import CALLS_AT_ONCE
from rljob_trainer.workers.placement import PlacementError, make_actor, start_local_ray, wait_for_resources
from rljob_trainer.workers.waiting import WorkerFailedError, WorkerLostError, WorkerStuckError, each, gather

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(900)]


class Worker:
    """Does as it is told."""

    def answer(self, value: int) -> int:
        return value

    def die(self) -> None:
        os._exit(1)

    def hang(self) -> None:
        time.sleep(3600)

    def fail(self) -> None:
        raise ValueError("wrong shape")

    def complain(self) -> None:
        raise UserError("spec.model.path: 'x' is not there", hint="write it right")


class BusyEngine:
    """Its generations do not end."""

    async def generate(self) -> None:
        await asyncio.sleep(3600)

    async def health(self) -> str:
        return "serving"


@pytest.fixture(scope="module")
def ray_here() -> Iterator[None]:
    start_local_ray(ranks=2, engines=6)
    yield
    ray.shutdown()


def worker(name: str) -> object:
    return make_actor(Worker, "rljob_rollout", name=name)


@pytest.mark.usefixtures("ray_here")
def test_results_come_by_name_in_the_order_asked_for() -> None:
    actors = [worker(f"engine {index}") for index in range(2)]
    calls = {f"engine {index}": actor.answer.remote(index * 10) for index, actor in enumerate(actors)}  # type: ignore[attr-defined]
    assert list(gather(calls, limit=120.0, doing="answering").items()) == [("engine 0", 0), ("engine 1", 10)]


@pytest.mark.usefixtures("ray_here")
@pytest.mark.parametrize(
    ("method", "error", "words"),
    [
        ("die", WorkerLostError, "rank 0 died while training"),
        ("fail", WorkerFailedError, "rank 0 failed while training: ValueError: wrong shape"),
        ("hang", WorkerStuckError, "rank 0 did not finish training within 1 s"),
        ("complain", UserError, "spec.model.path: 'x' is not there"),
    ],
)
def test_what_goes_wrong_is_named(method: str, error: type[Exception], words: str) -> None:
    actor = worker("rank 0")
    assert ray.get(actor.answer.remote(1), timeout=120.0) == 1  # type: ignore[attr-defined]
    limit = 1.0 if method == "hang" else 120.0
    with pytest.raises(error) as raised:
        gather({"rank 0": getattr(actor, method).remote()}, limit=limit, doing="training")
    assert words in str(raised.value)
    assert "Traceback" not in str(raised.value)
    ray.kill(actor)


@pytest.mark.usefixtures("ray_here")
def test_a_stop_ends_a_wait() -> None:
    stop = StopFlag()
    actor = worker("engine 0")
    call = actor.hang.remote()  # type: ignore[attr-defined]
    stop.request("suspend", "received SIGTERM")
    with pytest.raises(Stop, match="SIGTERM"):
        list(each({"engine 0": call}, limit=3600.0, doing="generating", tick=stop.check))
    ray.kill(actor)


@pytest.mark.usefixtures("ray_here")
def test_missing_resources_are_counted() -> None:
    with pytest.raises(PlacementError, match="rljob_trainer: 2 of 8"):
        wait_for_resources({"rljob_trainer": 8.0, "rljob_rollout": 1.0}, 0.5, lambda: None, poll=0.1)


def test_a_lost_lease_overrides_a_suspend() -> None:
    stop = StopFlag()
    stop.request("suspend", "asked")
    stop.request("fenced", "lease taken")
    stop.request("suspend", "again")
    assert stop.fenced
    with pytest.raises(Stop) as raised:
        stop.check()
    assert (raised.value.kind, raised.value.reason) == ("fenced", "lease taken")


@pytest.mark.usefixtures("ray_here")
def test_an_engine_with_a_thousand_groups_under_way_still_tells_its_health() -> None:
    actor = make_actor(BusyEngine, "rljob_rollout", name="engine 0", concurrency=CALLS_AT_ONCE)
    calls = [actor.generate.remote() for _ in range(1000)]
    assert ray.get(actor.health.remote(), timeout=120.0) == "serving"
    assert not ray.wait(calls, timeout=0)[0]
    ray.kill(actor)
