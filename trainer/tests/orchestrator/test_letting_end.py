"""New weights interrupt samples where that costs less than to let them end."""

from types import SimpleNamespace
from typing import Any

import pytest
from rljob_api.v1alpha1.job import RLJob
from rljob_trainer.rollout import asynchronous
from rljob_trainer.rollout.asynchronous import Pump, let_end
from rljob_trainer.workers.waiting import WorkerLostError

BATCH, GROUP = 4, 2
SPEC = {
    "model": {"path": "m"},
    "placement": {"type": "async"},
    "rollout": {"batchSize": BATCH, "nSamplesPerPrompt": GROUP, "numRollout": 9},
}


class Clock:
    """Seconds that pass when something waits."""

    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        return self.now


class Group:
    """Samples under way that end at a time."""

    loads = (0,)

    def __init__(self, clock: Clock, samples: list[Any], ends: list[float]) -> None:
        self._clock, self._samples, self.ends = clock, samples, ends

    def poll(self, timeout: float) -> None:
        self._clock.now += timeout

    @property
    def done(self) -> bool:
        return self._clock.now >= max(self.ends)

    def results(self) -> list[Any]:
        return self._samples


class Engines:
    """One engine, and when each sample of the groups that come ends on it."""

    def __init__(self, clock: Clock, ends: list[list[float]]) -> None:
        self.clock, self.ends, self.groups = clock, ends, list[Group]()
        self.lost = False

    def submit(self, samples: list[Any], *_: object, loads: object) -> Group:
        self.groups.append(Group(self.clock, samples, self.ends[len(self.groups)]))
        return self.groups[-1]

    def metrics(self) -> dict[str, dict[str, float]]:
        if self.lost:
            raise WorkerLostError("engine 0", "engine 0 died")
        ends = [end for group in self.groups for end in group.ends]
        return {"engine 0": {"running": float(sum(end > self.clock.now for end in ends))}}


class Prompts:
    drawn = 0

    def restore(self, state: object) -> None: ...

    def next(self, count: int) -> list[Any]:
        row = SimpleNamespace(row=self.drawn, prompt="p", prompt_ids=[1], label="", metadata={}, source="")
        self.drawn += count
        return [row] * count


def training(clock: Clock, ends: list[list[float]]) -> tuple[Any, Engines, Pump]:
    """A run in its first step, the next step's groups under way: they end at `ends`."""
    manifest = {"apiVersion": "rljob.io/v1alpha1", "kind": "RLJob", "metadata": {"name": "x"}, "spec": SPEC}
    run: Any = SimpleNamespace(
        job=RLJob.model_validate(manifest),
        state=SimpleNamespace(policy_version=0, pending=[], data={"some": 1}, rollout=0),
        seed=0, retriever_url=None, beat=lambda: None,
    )  # fmt: skip
    engines = Engines(clock, [[0.0, 0.0]] * BATCH + ends)
    pump = Pump(run, engines, Prompts())  # type: ignore[arg-type]
    pump(0.0)
    assert pump.take() is not None
    return run, engines, pump


def waited(monkeypatch: pytest.MonkeyPatch, ends: list[list[float]], patience: float, *, lost: bool = False) -> float:
    """Seconds between a step's end and its sync, the next step's groups ending at `ends`."""
    clock = Clock()
    monkeypatch.setattr(asynchronous, "time", clock)
    run, engines, pump = training(clock, ends)
    engines.lost = lost
    let_end(run, pump, patience)
    return clock.now


def test_a_batch_that_ends_soon_is_let_end(monkeypatch: pytest.MonkeyPatch) -> None:
    assert waited(monkeypatch, [[1.0, 1.0]] * BATCH, patience=3.0) == pytest.approx(1.0, abs=0.1)


def test_one_that_is_there_costs_no_time(monkeypatch: pytest.MonkeyPatch) -> None:
    assert waited(monkeypatch, [[0.0, 0.0]] * BATCH, patience=3.0) == 0.0


def test_patience_has_an_end(monkeypatch: pytest.MonkeyPatch) -> None:
    assert waited(monkeypatch, [[9.0, 9.0]] * BATCH, patience=3.0) == pytest.approx(3.0, abs=0.1)


def test_a_few_long_samples_are_interrupted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every group waits for one of its samples, and the engine has room."""
    ends = [[1.0, 1.0], [1.0, 9.0], [1.0, 9.0], [1.0, 9.0]]
    assert waited(monkeypatch, ends, patience=3.0) == pytest.approx(1.0, abs=0.1)


def test_a_lost_engine_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    assert waited(monkeypatch, [[1.0, 1.0]] * BATCH, patience=3.0, lost=True) == 0.0


def test_what_starts_during_a_sync_is_as_old_as_what_is_served() -> None:
    """A group that is dropped leaves its place to one that the old weights begin: it is trained in the next step, or
    that step waits for it."""
    clock = Clock()
    run, _, pump = training(clock, [[9.0, 9.0]] * (BATCH + 1 + BATCH))
    pump.ledger.drop(pump.ledger.pending[0])
    run.state.policy_version = run.state.rollout = 1  # trained; the engines are being told
    pump(0.0)
    assert len(pump.ledger.pending) == BATCH
    late = pump.ledger.pending[-1]
    pump.trained()
    pump(0.0)
    for number in set(pump.ledger.pending) - {late}:
        pump.ledger.finish(number)
    assert pump.ledger.next(1) is None, "it would be two versions old in the step after"
    pump.ledger.finish(late)
    assert late in (pump.ledger.next(1) or [])
