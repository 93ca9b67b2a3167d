"""Whatever the schema allows, the checks judge: they never crash, and what they let pass adds up."""

import importlib.util
import json
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from rljob_api.codegen.crd import schema
from rljob_api.manifest.load import loads
from rljob_api.rules import arithmetic
from rljob_api.rules.checks import check, inconsistent

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
        (4, {"replicas": 2, "gpusPerEngine": 2}, "async", []),
        (4, {"replicas": 2, "gpusPerEngine": 2}, "colocated", []),
        (4, {"replicas": 2}, "colocated", []),
        (4, {"replicas": 3}, "colocated", ["replicas"]),
        (4, {"replicas": 8}, "colocated", ["replicas"]),
        (4, {"replicas": 3, "gpusPerEngine": 1}, "colocated", ["replicas", "gpusPerEngine"]),
    ],
)
def test_colocated_engines_have_equal_shares_of_the_trainers_gpus(
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


def test_an_engine_lies_within_one_pod_of_the_trainer() -> None:
    spec = {
        "model": {"path": "m"},
        "data": {"train": {"path": "d"}},
        "reward": {"functions": [{"name": "em"}]},
        "trainer": {"replicas": 2, "gpusPerReplica": 2},
        "rollout": {"engine": "sglang", "replicas": 1, "gpusPerEngine": 4},
        "placement": {"type": "colocated"},
    }
    job = {"apiVersion": "rljob.io/v1alpha1", "kind": "RLJob", "metadata": {"name": "j"}, "spec": spec}
    (problem,) = check(loads(json.dumps(job)))
    assert problem.path == "spec.rollout.replicas"
    assert "each within one pod" in problem.message


def test_jobs_without_a_trainer_need_gpus_for_their_engines_wherever_they_are_placed() -> None:
    spec: dict[str, Any] = {
        "mode": "Evaluate",
        "model": {"path": "m"},
        "reward": {"functions": [{"name": "em"}]},
        "rollout": {"engine": "sglang"},
        "placement": {"type": "colocated"},
        "evaluation": {"datasets": [{"name": "a", "path": "d"}]},
    }
    job = {"apiVersion": "rljob.io/v1alpha1", "kind": "RLJob", "metadata": {"name": "j"}, "spec": spec}
    assert [problem.path for problem in check(loads(json.dumps(job)))] == ["spec.rollout.engine"]
    spec["rollout"]["gpusPerEngine"] = 2
    assert check(loads(json.dumps(job))) == []
    assert arithmetic.total_gpus(loads(json.dumps(job)).spec) == 2


def test_a_custom_estimator_may_do_with_one_sample_of_a_prompt() -> None:
    def problems(**algorithm: object) -> list[str]:
        spec = {
            "model": {"path": "m"},
            "data": {"train": {"path": "d"}},
            "reward": {"functions": [{"name": "em"}]},
            "rollout": {"nSamplesPerPrompt": 1, "engine": "torch"},
            "trainer": {"backend": "fsdp"},
            "algorithm": algorithm,
        }
        manifest = {"apiVersion": "rljob.io/v1alpha1", "kind": "RLJob", "metadata": {"name": "one"}, "spec": spec}
        return [str(problem) for problem in check(loads(json.dumps(manifest)))]

    assert [said for said in problems() if "grpo compares the samples of a prompt" in said]
    assert not problems(customAdvantages={"function": "mine:advantages"})
