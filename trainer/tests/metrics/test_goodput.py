"""Which share of GPU time is useful."""

import pytest
from rljob_api.v1alpha1.job import RLJob
from rljob_trainer.metrics.goodput import Devices, devices_of, goodput, gpu_seconds

PHASES = {"generate": 6.0, "reward": 1.0, "train": 2.0, "sync": 0.5, "commit": 0.25, "evaluate": 0.0, "idle": 0.25}
PHASES["total"] = 10.0


def test_groups_that_take_turns_leave_one_another_idle() -> None:
    seconds = gpu_seconds(PHASES, Devices(trainer=4, rollout=2))
    assert sum(seconds.values()) == pytest.approx(10.0 * 6)
    assert seconds[("trainer", "train")] == 8.0
    assert seconds[("trainer", "idle")] == pytest.approx(4 * (10 - 2.75))
    assert seconds[("rollout", "generate")] == 12.0
    assert goodput(seconds) == pytest.approx(20 / 60)


def test_shared_gpus_are_idle_only_while_nothing_runs_on_them() -> None:
    seconds = gpu_seconds(PHASES, Devices(trainer=8, rollout=8, shared=True))
    assert sum(seconds.values()) == pytest.approx(80.0)
    assert goodput(seconds) == pytest.approx(0.8)
    assert seconds[("shared", "idle")] == pytest.approx(8 * 1.25)


def test_asynchronous_engines_work_beside_the_trainer() -> None:
    phases = {"generate": 1.0, "train": 8.0, "sync": 1.0, "total": 10.0}
    seconds = gpu_seconds(phases, Devices(1, 1), beside=9.5)
    assert seconds[("rollout", "generate")] == 9.0  # the sync interrupts it
    assert seconds[("trainer", "idle")] == 1.0
    assert goodput(seconds) == pytest.approx(17 / 20)


def test_without_gpus_processes_count() -> None:
    manifest = {
        "apiVersion": "rljob.io/v1alpha1", "kind": "RLJob", "metadata": {"name": "j"},
        "spec": {
            "model": {
                "randomInit": {"hiddenSize": 32, "intermediateSize": 48, "numHiddenLayers": 1}, "tokenizerPath": "t",
            },
            "data": {"train": {"path": "x.jsonl"}},
            "trainer": {"replicas": 2},
            "rollout": {"engine": "torch", "replicas": 3},
        },
    }  # fmt: skip
    assert devices_of(RLJob.model_validate(manifest).spec) == Devices(2, 3)
    assert goodput({}) is None
