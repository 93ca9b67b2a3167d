"""Engines that come and go while the job trains."""

import copy
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from ray.exceptions import RayActorError
from rljob_api.contract.request import ScaleRequest, wants_scale
from rljob_trainer.orchestrator.stop import StopFlag
from rljob_trainer.workers import generation
from rljob_trainer.workers.elasticity import CLOSED_LOAD, Roster
from rljob_trainer.workers.generation import route
from rljob_trainer.workers.rollout_worker import RolloutWorker

from .conftest import MANIFEST
from .in_process import InProcess


def wish(engines: int, *drain: str) -> ScaleRequest:
    return ScaleRequest(engines, frozenset(drain))


class TestRoster:
    @pytest.fixture
    def three(self) -> Roster:
        return Roster(3, pods={0: "a", 1: "b", 2: "c"})

    def test_a_pod_that_is_to_go_gets_no_new_samples(self, three: Roster) -> None:
        three.close(wish(2, "b"))
        assert three.open == [0, 2]
        assert three.loads([5, 0, 4]) == [5, CLOSED_LOAD, 4]
        assert route([4, 4, 4], three.loads([0, 0, 0])) == [0, 2, 0]

    def test_it_ends_once_its_work_is_done_and_not_before(self, three: Roster) -> None:
        three.close(wish(2, "b"))
        three.busy[1] = 1
        assert three.idle() == []
        assert three.report(wish(2, "b")) == {"serving": ["a", "b", "c"], "drained": []}
        three.busy[1] = 0
        assert three.idle() == [1]
        three.end(1)
        assert three.report(wish(2, "b")) == {"serving": ["a", "c"], "drained": ["b"]}

    def test_the_last_engine_stays(self, three: Roster) -> None:
        three.close(wish(1, "a", "b", "c"))
        assert len(three.open) == 1

    def test_a_wish_that_is_taken_back_opens_the_engine_again(self, three: Roster) -> None:
        three.close(wish(2, "b"))
        three.close(wish(3))
        assert three.open == [0, 1, 2]

    def test_numbers_of_engines_that_are_gone_are_given_again(self, three: Roster) -> None:
        three.end(1)
        assert three.missing(wish(4)) == 2
        assert [three.take_number(), three.take_number()] == [1, 3]
        assert three.missing(wish(4)) == 0
        assert three.open == [0, 2], "they serve nothing until they have joined"

    def test_a_pod_without_an_engine_is_drained_already(self, three: Roster) -> None:
        assert three.report(wish(3, "never-started"))["drained"] == ["never-started"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (None, None),
        ('{"suspend": false, "attempt": 2}', None),
        ('{"attempt": 1, "engines": 3}', None),
        ('{"attempt": 2, "engines": null}', None),
        ('{"attempt": 2, "engines": 3, "drain": ["a"]}', wish(3, "a")),
    ],
)
def test_the_operators_wish(text: str | None, expected: ScaleRequest | None) -> None:
    assert wants_scale(text, 2) == expected


def test_a_wish_for_no_engine_is_refused() -> None:
    with pytest.raises(ValueError, match="asks for 0 engines"):
        wants_scale('{"attempt": 2, "engines": 0}', 2)


@pytest.fixture
def job(tiny_world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], InProcess]:
    """Makes jobs by name, whose engine k runs on `pod-k`."""
    start = RolloutWorker.start

    async def named(self: RolloutWorker, devices: str | None = None) -> dict[str, Any]:
        return await start(self, devices) | {"pod": f"pod-{self._engine_index}"}

    monkeypatch.setattr(RolloutWorker, "start", named)

    def make(name: str) -> InProcess:
        directory = tmp_path / name
        shutil.copytree(tiny_world, directory / "world")
        return InProcess(directory, copy.deepcopy(MANIFEST), monkeypatch)

    return make


@pytest.mark.slow
def test_engines_come_go_and_are_lost_and_not_a_bit_changes(
    job: Callable[[str], InProcess], monkeypatch: pytest.MonkeyPatch
) -> None:
    straight, scaled = job("straight"), job("scaled")
    straight.run()

    wishes = {2: wish(3), 5: wish(2, "pod-1")}
    now: list[ScaleRequest] = []
    seen: list[Any] = []
    lost: list[int] = []
    generate = RolloutWorker.generate

    async def dies_once(self: RolloutWorker, *arguments: Any) -> Any:
        if self._engine_index == 2 and not lost:
            lost.append(2)
            raise RayActorError
        return await generate(self, *arguments)

    monkeypatch.setattr(RolloutWorker, "generate", dies_once)

    def at_generate(number: int, stop: StopFlag) -> None:
        now[:] = [wishes[number]] if number in wishes else now
        told = scaled.progress.snapshot().get("engines")
        if told not in seen:
            seen.append(told)

    monkeypatch.setattr(generation, "CALL_SAMPLES", 2)  # so few samples would be one call of each engine
    scaled.run(at_generate, lambda: next(iter(now), None))
    assert lost == [2]
    assert {"serving": ["pod-0", "pod-1", "pod-2"], "drained": []} in seen
    assert scaled.progress.snapshot()["engines"] == {"serving": ["pod-0", "pod-2"], "drained": ["pod-1"]}
    assert scaled.summary()["weights_digest"] == straight.summary()["weights_digest"]
    assert scaled.summary()["evaluations"] == straight.summary()["evaluations"]
