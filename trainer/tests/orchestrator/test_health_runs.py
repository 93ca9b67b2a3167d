"""Whole runs in which learning goes wrong, or is done early: what each policy of `lifecycle.health` makes of it.

The trouble is real: a reward so large for some prompts that the loss of their step is not finite.
"""

import copy
from pathlib import Path
from typing import Any

import pytest
from rljob_trainer.checkpoint import latest_commit
from rljob_trainer.health.rollback import rollbacks
from rljob_trainer.orchestrator.stop import Stop
from rljob_trainer.workers.engine_group import EngineGroup
from rljob_trainer.workers.rollout_worker import RolloutWorker

from .conftest import MANIFEST
from .in_process import InProcess

pytestmark = [pytest.mark.slow]
POISON = """
def reward(sample, rows):
    return 1e300 * (1 + sample.index) if sample.row in rows else float(len(sample.response_ids)) / 12
"""


@pytest.fixture
def run(tiny_world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> InProcess:
    """The tiny job with two SFT steps, three prompts a rollout in the file's order, and no evaluation."""
    hooks = tmp_path / "hooks"
    hooks.mkdir()
    (hooks / "poisoned.py").write_text(POISON)
    monkeypatch.syspath_prepend(str(hooks))
    (tmp_path / "world").symlink_to(tiny_world)
    made = InProcess(tmp_path, copy.deepcopy(MANIFEST), monkeypatch)
    spec: dict[str, Any] = made.manifest["spec"]
    spec["sft"]["numSteps"] = 2
    spec["data"]["train"]["shuffle"] = False
    spec["algorithm"] |= {"normalizeByStd": False}
    del spec["evaluation"]
    return made


def poison(run: InProcess, rows: list[int], **health: Any) -> None:
    spec = run.manifest["spec"]
    spec["reward"] = {"functions": [{"name": "custom", "function": "poisoned:reward", "args": {"rows": rows}}]}
    spec["lifecycle"] = {"health": health}


def ends(run: InProcess) -> Stop:
    with pytest.raises(Stop) as stop:
        run.run()
    return stop.value


def test_a_step_that_is_not_finite_fails_the_job_and_leaves_the_commit(run: InProcess) -> None:
    poison(run, [3], nonFinite="Fail")
    stop = ends(run)
    assert stop.kind == "unhealthy"
    assert "NonFinite: RL step 1" in stop.reason
    assert run.last_step() == 3  # two of SFT, one of RL; what is not finite was not applied
    assert run.progress.snapshot()["health"]["NonFinite"]["policy"] == "Fail"


@pytest.mark.parametrize("asynchronous", [False, True])
def test_a_rollback_goes_on_from_the_commit_before_with_other_prompts(run: InProcess, asynchronous: bool) -> None:
    poison(run, [3], nonFinite="Rollback")
    run.manifest["spec"]["checkpoint"] |= {"asynchronous": asynchronous, "keep": 1}
    stop = ends(run)
    assert stop.kind == "rollback"
    (record,) = rollbacks(run.directory)
    commit = latest_commit(run.directory).commit
    assert commit is not None
    assert record.target == commit.name
    assert run.progress.snapshot()["lastCommit"]["step"] == 3
    run.run()  # with no word of what to resume from: the record says it
    assert (run.summary()["steps"], run.summary()["state"]) == (6, "Succeeded")
    assert [record["rollout"] for record in run.records("rl")] == [2, 3, 4]


def test_rollbacks_are_bounded(run: InProcess) -> None:
    poison(run, list(range(40)), nonFinite="Rollback", maxRollbacks=2)
    assert [ends(run).kind for _ in range(3)] == ["rollback", "rollback", "unhealthy"]
    assert [record.number for record in rollbacks(run.directory)] == [1, 2]


@pytest.mark.parametrize("steps", [1, 2])
def test_with_warn_another_rollout_takes_the_place_and_every_step_is_trained(run: InProcess, steps: int) -> None:
    poison(run, [4, 5], nonFinite="Warn")
    run.manifest["spec"]["rollout"]["batchSize"] = 4
    run.manifest["spec"]["trainer"]["globalBatchSize"] = 16 // steps
    run.run()
    assert (run.summary()["steps"], run.summary()["state"]) == (2 + 4 * steps, "Succeeded")
    assert run.progress.snapshot()["health"] == {}  # and the trouble is over
    assert len(run.records("rl")) == 4


@pytest.mark.parametrize("steps", [1, 2])
def test_the_same_holds_for_rollouts_that_are_generated_beside_training(run: InProcess, steps: int) -> None:
    run.manifest["spec"]["placement"] = {"type": "async", "maxStaleness": 1}
    poison(run, [4, 5], nonFinite="Warn")
    run.manifest["spec"]["rollout"]["batchSize"] = 4
    run.manifest["spec"]["trainer"]["globalBatchSize"] = 16 // steps
    run.run()
    assert (run.summary()["steps"], run.summary()["state"]) == (2 + 4 * steps, "Succeeded")
    assert run.progress.snapshot()["health"] == {}
    records = run.records("rl")
    assert [record["rollout"] for record in records] == [1, 2, 3, 4]
    assert max(record["staleness_max"] for record in records) == 1


def test_rollouts_generated_beside_training_are_not_thrown_away_for_ever(run: InProcess) -> None:
    run.manifest["spec"]["placement"] = {"type": "async", "maxStaleness": 1}
    poison(run, list(range(40)), nonFinite="Ignore")
    assert "4 times in a row" in ends(run).reason


def test_a_pause_beside_generation_commits_past_the_rollout_that_was_given_up(run: InProcess) -> None:
    run.manifest["spec"]["placement"] = {"type": "async", "maxStaleness": 1}
    run.manifest["spec"]["checkpoint"] = {"saveInterval": 0}
    poison(run, [3], nonFinite="Pause")
    assert ends(run).kind == "paused"
    assert run.last_step() == 3
    run.run()  # without the prompt that was the trouble
    assert (run.summary()["steps"], run.summary()["state"]) == (6, "Succeeded")


def test_rollouts_are_not_thrown_away_for_ever(run: InProcess) -> None:
    poison(run, list(range(40)), nonFinite="Ignore")
    stop = ends(run)
    assert stop.kind == "unhealthy"
    assert "4 times in a row" in stop.reason


def test_a_pause_commits_and_a_resume_begins_to_look_anew(run: InProcess) -> None:
    thresholds = {"entropyWindow": 2, "entropyMin": 1000.0}
    run.manifest["spec"]["checkpoint"] = {"saveInterval": 0}
    run.manifest["spec"]["lifecycle"] = {"health": {"entropyCollapsed": "Pause", "thresholds": thresholds}}
    for step in (4, 6):
        stop = ends(run)
        assert stop.kind == "paused"
        assert "EntropyCollapsed: mean entropy" in stop.reason
        assert run.last_step() == step
    run.run()
    assert run.summary()["state"] == "Succeeded"


def test_a_rollback_from_a_slow_trouble_goes_back_before_its_window(run: InProcess) -> None:
    thresholds = {"mismatchWindow": 2, "mismatchMax": 1e-12}
    run.manifest["spec"]["rollout"]["numRollout"] = 6
    run.manifest["spec"]["lifecycle"] = {"health": {"mismatchHigh": "Rollback", "thresholds": thresholds}}
    stop = ends(run)
    (record,) = rollbacks(run.directory)
    assert stop.kind == "rollback"
    assert record.target.endswith("step-000002")  # the end of SFT: the first rollouts are the trouble


def test_the_job_ends_early_and_well_at_its_target(run: InProcess) -> None:
    run.manifest["spec"]["lifecycle"] = {"earlyStop": {"metric": "response_length", "atLeast": 1, "times": 2}}
    run.run()
    summary = run.summary()
    assert (summary["steps"], summary["total_steps"], summary["state"]) == (4, 6, "Succeeded")
    assert summary["early_stop"]["target"] == "response_length at least 1, 2 times in a row"
    told = run.progress.snapshot()
    assert (told["step"], told["totalSteps"], told["earlyStop"]["step"]) == (4, 6, 4)
    run.run()  # it stays at its end
    assert run.summary()["steps"] == 4
    del run.manifest["spec"]["lifecycle"]
    run.run()  # unless more is asked for
    assert run.summary()["steps"] == 6


def test_a_target_of_an_evaluation(run: InProcess) -> None:
    spec = run.manifest["spec"]
    spec["evaluation"] = copy.deepcopy(MANIFEST["spec"]["evaluation"])
    spec["lifecycle"] = {"earlyStop": {"metric": "evaluation/held-out/failed", "atMost": 0}}
    spec["evaluation"]["atStart"] = False
    run.run()
    assert run.summary()["steps"] == 4  # the first evaluation is after two rollouts
    assert "held-out/final" in run.summary()["evaluations"]


def test_engines_that_left_the_gpus_wake_for_the_rollout_anew(run: InProcess, monkeypatch: pytest.MonkeyPatch) -> None:
    asleep: set[int] = set()
    update, generate = RolloutWorker.update_weights, RolloutWorker.generate

    async def sleep(self: RolloutWorker) -> None:
        asleep.add(self._engine_index)

    async def woken(self: RolloutWorker, *arguments: Any) -> str:
        asleep.discard(self._engine_index)
        return await update(self, *arguments)

    async def awake(self: RolloutWorker, *arguments: Any) -> Any:
        assert self._engine_index not in asleep
        return await generate(self, *arguments)

    monkeypatch.setattr(EngineGroup, "sleeps", property(lambda self: True))
    for name, method in (("sleep", sleep), ("update_weights", woken), ("generate", awake)):
        monkeypatch.setattr(RolloutWorker, name, method)
    poison(run, [3], nonFinite="Warn")
    run.run()
    assert run.summary()["state"] == "Succeeded"
    assert asleep
