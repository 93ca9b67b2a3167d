"""Whatever the schema allows, the checks judge: they never crash, and what they let pass adds up."""

import importlib.util
import json
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from rljob_trainer.config import arithmetic
from rljob_trainer.config.checks import check, inconsistent
from rljob_trainer.config.crd import schema
from rljob_trainer.config.load import loads

_path = Path(__file__).with_name("schema_strategy.py")
_spec = importlib.util.spec_from_file_location("schema_strategy", _path)
assert _spec
assert _spec.loader
_module = importlib.util.module_from_spec(_spec)
sys.modules["schema_strategy"] = _module
_spec.loader.exec_module(_module)
specs = _module.values(schema()["properties"]["spec"])


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(spec=specs)
def test_what_the_crd_lets_pass_is_judged_and_never_crashes(spec: dict[str, object]) -> None:
    manifest = {"apiVersion": "rljob.io/v1alpha1", "kind": "RLJob", "metadata": {"name": "any"}, "spec": spec}
    job = loads(json.dumps(manifest))
    for problem in check(job):
        assert problem.path.startswith("spec")
        assert problem.message
    if not inconsistent(job.spec):
        if arithmetic.trains_rl(job.spec):
            plan = arithmetic.batch_plan(job.spec)
            assert plan.global_batch_size % arithmetic.data_parallel_size(job.spec) == 0
        assert arithmetic.total_gpus(job.spec) >= 0


def test_a_manifest_that_asks_for_nothing_is_told_what_to_write() -> None:
    job = loads(
        json.dumps(
            {
                "apiVersion": "rljob.io/v1alpha1",
                "kind": "RLJob",
                "metadata": {"name": "bare"},
                "spec": {
                    "model": {"path": "m"},
                    "data": {"train": {"path": "d"}},
                    "reward": {"functions": [{"name": "em"}]},
                },
            }
        )
    )
    assert [str(problem) for problem in check(job)] == [
        "spec.trainer.backend: megatron needs GPUs, but spec.trainer.gpusPerReplica is 0; use fsdp on CPU",
        "spec.rollout.engine: sglang needs GPUs, but spec.rollout.gpusPerEngine is 0; use torch on CPU",
    ]


def test_sft_alone_needs_no_rollout() -> None:
    job = loads(
        json.dumps(
            {
                "apiVersion": "rljob.io/v1alpha1",
                "kind": "RLJob",
                "metadata": {"name": "sft"},
                "spec": {
                    "model": {"path": "m"},
                    "algorithm": {"type": "sft"},
                    "sft": {"dataset": {"path": "d"}, "numSteps": 5},
                    "trainer": {"backend": "fsdp"},
                },
            }
        )
    )
    assert check(job) == []
    assert arithmetic.engine_count(job.spec) == 0


@pytest.mark.parametrize(
    ("gpus", "rollout", "placement", "refused"),
    [
        (8, {"replicas": 8, "gpusPerEngine": 1}, "colocated", []),
        (8, {"replicas": 8}, "colocated", []),
        (4, {"replicas": 2, "gpusPerEngine": 2}, "async", ["gpusPerEngine"]),
        (4, {"replicas": 2, "gpusPerEngine": 2}, "colocated", ["gpusPerEngine", "replicas"]),
        (4, {"replicas": 2}, "colocated", ["replicas"]),
    ],
)
def test_colocated_engines_are_one_for_each_gpu_of_the_trainer(
    gpus: int, rollout: dict[str, int], placement: str, refused: list[str]
) -> None:
    spec = {
        "model": {"path": "m"},
        "data": {"train": {"path": "d"}},
        "reward": {"functions": [{"name": "em"}]},
        "trainer": {"backend": "megatron", "gpusPerReplica": gpus},
        "rollout": rollout,
        "placement": {"type": placement},
    }
    job = {"apiVersion": "rljob.io/v1alpha1", "kind": "RLJob", "metadata": {"name": "j"}, "spec": spec}
    assert [problem.path for problem in check(loads(json.dumps(job)))] == [f"spec.rollout.{path}" for path in refused]
