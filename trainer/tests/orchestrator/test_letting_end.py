"""New weights interrupt samples where that costs less than to let them end."""

from types import SimpleNamespace
from typing import Any

import pytest
from rljob_api.v1alpha1.job import RLJob
from rljob_trainer.metrics.timing import PhaseTimer
from rljob_trainer.orchestrator.workers import running_samples
from rljob_trainer.rollout import asynchronous
from rljob_trainer.rollout.asynchronous import AsynchronousSource, DriverLoop
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
        self.lost, self.ranks_hold_version = False, True

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


def training(clock: Clock, ends: list[list[float]]) -> tuple[Engines, AsynchronousSource]:
    """A source in the first step, the next step's groups under way: they end at `ends`."""
    manifest = {"apiVersion": "rljob.io/v1alpha1", "kind": "RLJob", "metadata": {"name": "x"}, "spec": SPEC}
    engines = Engines(clock, [[0.0, 0.0]] * BATCH + ends)
    loop = DriverLoop(
        score=lambda samples: None,
        running=lambda: running_samples(engines),  # type: ignore[arg-type]
        beat=lambda: None,
        beat_or_stop=lambda: None,
        set_while_waiting=lambda action: None,
    )
    source = AsynchronousSource(
        RLJob.model_validate(manifest).spec,
        engines,  # type: ignore[arg-type]
        Prompts(),  # type: ignore[arg-type]
        loop,
        PhaseTimer(),
        job_seed=0,
        retriever_url=None,
        rollout=0,
        cursor={"some": 1},
        pending=[],
    )
    source.collect(0.0)
    assert source.take() is not None
    return engines, source


def waited(monkeypatch: pytest.MonkeyPatch, ends: list[list[float]], patience: float, *, lost: bool = False) -> float:
    """Seconds between a step's end and its sync, the next step's groups ending at `ends`."""
    clock = Clock()
    monkeypatch.setattr(asynchronous, "time", clock)
    engines, source = training(clock, ends)
    engines.lost = lost
    source.let_end(patience)
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
    _, source = training(clock, [[9.0, 9.0]] * (BATCH + 1 + BATCH))
    source.ledger.drop(source.ledger.pending[0])
    source.trained()  # and the engines are being told
    source.collect(0.0)
    assert len(source.ledger.pending) == BATCH
    late = source.ledger.pending[-1]
    source.served()
    source.collect(0.0)
    for number in set(source.ledger.pending) - {late}:
        source.ledger.finish(number)
    assert source.ledger.next(1) is None, "it would be two versions old in the step after"
    source.ledger.finish(late)
    assert late in (source.ledger.next(1) or [])
