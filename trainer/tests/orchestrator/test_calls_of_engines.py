"""How the samples of a batch are given to the engines, and what is made again when one is lost."""

import copy
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from ray.exceptions import RayActorError
from rljob.types import Sample, SamplingParams
from rljob_api.v1alpha1.job import RLJob
from rljob_trainer.workers import engine_pool, generation, waiting
from rljob_trainer.workers.engine_group import EngineGroup
from rljob_trainer.workers.generation import CALL_SAMPLES, CALLS, calls_of

from .actors import Told
from .conftest import MANIFEST


class Call:
    """A call of an engine, under way until it is `ready`."""

    def __init__(self, engine: int, method: str, arguments: tuple[Any, ...]) -> None:
        self.engine, self.method, self.arguments = engine, method, arguments
        self.ready, self.lost = method != "generate", False

    @property
    def samples(self) -> Sequence[Sample]:
        found: Sequence[Sample] = self.arguments[0]
        return found


class Cluster:
    """Engines whose calls end when the test says so, and as much of Ray as asks for them."""

    def __init__(self) -> None:
        self.calls: list[Call] = []

    def make_actor(
        self, cls: type, resource: str, manifest: Any, directory: str, index: int, *_: Any, **__: Any
    ) -> Told:
        def note(method: str, *arguments: Any) -> Call:
            self.calls.append(Call(index, method, arguments))
            return self.calls[-1]

        return Told(note)

    def wait(self, refs: list[Call], *, num_returns: int = 1, timeout: float = 0) -> tuple[list[Call], list[Call]]:
        ready = [ref for ref in refs if ref.ready][:num_returns]
        return ready, [ref for ref in refs if ref not in ready]

    def get(self, ref: Call, timeout: float) -> Any:
        if ref.lost:
            raise RayActorError
        if ref.method != "generate":
            return {"pod": ""}
        return [f"{s.group}.{s.index}" for s in ref.samples]

    @property
    def generating(self) -> list[Call]:
        return [call for call in self.calls if call.method == "generate"]


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Cluster:
    made = Cluster()
    ray = SimpleNamespace(wait=made.wait, get=made.get, kill=lambda actor: None)
    for module in (engine_pool, generation, waiting):
        monkeypatch.setattr(module, "ray", ray)
    monkeypatch.setattr(engine_pool, "make_actor", made.make_actor)
    return made


def group_of(replicas: int, directory: Path) -> EngineGroup:
    manifest = copy.deepcopy(MANIFEST)
    manifest["spec"]["rollout"]["replicas"] = replicas
    sync: Any = SimpleNamespace()
    return EngineGroup(RLJob.model_validate(manifest), directory, lambda: None, sync=sync)


def samples(groups: int, size: int) -> list[Sample]:
    return [Sample("q", [1], group=group, index=index) for group in range(groups) for index in range(size)]


@given(st.integers(1, 5000))
def test_calls_are_a_bounded_number_and_hold_every_sample_once(count: int) -> None:
    calls = calls_of(range(count))
    assert [number for call in calls for number in call] == list(range(count))
    assert len(calls) <= CALLS
    assert all(len(call) >= CALL_SAMPLES for call in calls[:-1])


def test_what_is_ready_is_taken_in_at_once_while_others_are_under_way(cluster: Cluster, tmp_path: Path) -> None:
    generating = group_of(1, tmp_path).submit(samples(16, 16), SamplingParams(), None)
    assert [len(call.samples) for call in cluster.generating] == [32] * 8
    for call in cluster.generating[1:4]:
        call.ready = True
    generating.poll(0.0)
    assert generating.loads == [160]
    for call in cluster.generating:
        call.ready = True
    generating.poll(0.0)
    assert generating.done
    assert generating.results() == [f"{group}.{index}" for group in range(16) for index in range(16)]


def test_of_a_lost_engine_only_what_is_not_there_is_made_again(cluster: Cluster, tmp_path: Path) -> None:
    group = group_of(2, tmp_path)
    generating = group.submit(samples(16, 16), SamplingParams(), None)
    first = [call for call in cluster.generating if call.engine == 0]
    assert len(first) == 4
    for call in first:
        call.ready = True
    for call in first[1:]:  # all find it lost; it is replaced once
        call.lost = True
    generating.poll(0.0)
    assert sum(call.method == "start" for call in cluster.calls) == 1
    again = cluster.generating[8:]
    assert [call.samples for call in again] == [call.samples for call in first[1:]]
    assert group.pool.roster.busy == {0: 3, 1: 4}
    for call in cluster.generating:
        call.ready = True
    generating.poll(0.0)
    assert generating.results() == [f"{group}.{index}" for group in range(16) for index in range(16)]
    assert not any(group.pool.roster.busy.values())


def test_what_a_replaced_engine_was_asked_says_nothing_of_the_new_one(
    cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(generation, "HEALTH_EVERY_SECONDS", 0.0)
    generating = group_of(1, tmp_path).submit(samples(1, 16), SamplingParams(), None)
    generating.poll(0.0)
    (asked,) = [call for call in cluster.calls if call.method == "health"]
    asked.ready = False
    cluster.generating[0].ready = cluster.generating[0].lost = True
    generating.poll(0.0)
    asked.ready = asked.lost = True  # the process is gone, and Ray says so of every call
    generating.poll(0.0)
    assert sum(call.method == "start" for call in cluster.calls) == 1


@pytest.mark.parametrize("keeps_version", [False, True])
def test_an_engine_lost_during_a_step_that_comes_to_nothing_gets_the_version_that_stays(
    keeps_version: bool, cluster: Cluster, tmp_path: Path
) -> None:
    sent: list[tuple[int, list[int]]] = []
    sync: Any = SimpleNamespace(
        keeps_version=keeps_version,
        prepare=lambda version: None,
        send=lambda version, engines: sent.append((version, sorted(engines))),
    )
    group = group_of(2, tmp_path)
    group._sync = sync
    group.update_weights(3)
    generating = group.submit(samples(2, 2), SamplingParams(), None)
    group.ranks_hold_version = False
    cluster.generating[1].ready = cluster.generating[1].lost = True
    generating.poll(0.0)
    group.catch_up()
    replaced = [(3, [1])]
    assert sent == [(3, [0, 1]), *(replaced if keeps_version else [])]  # the ranks have moved on
    group.ranks_hold_version = True
    group.catch_up()
    group.catch_up()
    assert sent == [(3, [0, 1]), *replaced]
