"""Engines and backends as data: the API's enums are theirs, and the rules hold for what each entry says it needs."""

import subprocess
import sys
from collections.abc import Iterable
from typing import Any

import pytest
from rljob_api.catalogue.backends import BACKENDS
from rljob_api.catalogue.engines import ENGINES
from rljob_api.catalogue.estimators import ESTIMATORS
from rljob_api.catalogue.losses import LOSSES
from rljob_api.catalogue.rewards import REWARDS
from rljob_api.codegen.crd import schema
from rljob_api.errors import ManifestError
from rljob_api.manifest.load import loads
from rljob_api.rules.checks import check
from rljob_api.v1alpha1.job import RLJob

HEAD = "apiVersion: rljob.io/v1alpha1\nkind: RLJob\nmetadata: {name: j}\nspec:\n  model: {path: m}\n  "


def paths(**sections: dict[str, Any]) -> set[str]:
    """Fields of what is wrong with a job."""
    base: dict[str, Any] = {
        "model": {"path": "m"},
        "data": {"train": {"path": "p"}},
        "reward": {"functions": [{"name": "em"}]},
    }
    job = RLJob.model_validate({"metadata": {"name": "a"}, "spec": base | sections})
    return {problem.path for problem in check(job)}


def test_the_enums_of_the_api_are_the_entries() -> None:
    spec = schema()["properties"]["spec"]["properties"]
    assert spec["rollout"]["properties"]["engine"]["enum"] == list(ENGINES)
    assert spec["trainer"]["properties"]["backend"]["enum"] == list(BACKENDS)


@pytest.mark.parametrize(
    ("section", "names"),
    [
        ("rollout: {engine: %s}", ENGINES),
        ("trainer: {backend: %s}", BACKENDS),
        ("algorithm: {advantageEstimator: %s}", ESTIMATORS),
        ("algorithm: {policyLoss: %s}", LOSSES),
        ("reward: {functions: [{name: %s}]}", [*REWARDS, "remote", "custom"]),
    ],
)
def test_a_name_that_is_not_one_of_them_is_told_which_there_are(section: str, names: Iterable[str]) -> None:
    name = next(iter(names))
    with pytest.raises(ManifestError) as caught:
        loads(HEAD + section % f"{name}x")
    assert f'"{name}x" is not one of {", ".join(names)}; did you mean {name}?' in str(caught.value)


@pytest.mark.parametrize("name", list(ENGINES))
def test_an_engine_that_needs_gpus_is_refused_without(name: str) -> None:
    found = paths(rollout={"engine": name}, trainer={"gpusPerReplica": 1})
    assert ("spec.rollout.engine" in found) == ENGINES[name].needs_gpus


@pytest.mark.parametrize("name", list(BACKENDS))
def test_a_backend_that_needs_gpus_is_refused_without(name: str) -> None:
    found = paths(trainer={"backend": name}, rollout={"engine": "torch"})
    assert ("spec.trainer.backend" in found) == BACKENDS[name].needs_gpus


def test_weights_have_a_way_in_every_placement() -> None:
    for engine in ENGINES.values():
        assert {"arrays", "disk"}.intersection(engine.weights), engine.name


def test_the_catalogue_imports_the_standard_library_alone() -> None:
    program = (
        "import sys; before = set(sys.modules); import rljob_api.catalogue.engines, rljob_api.catalogue.backends; "
        "new = {name.split('.')[0] for name in set(sys.modules) - before} - set(sys.stdlib_module_names); "
        "assert new <= {'rljob_api'}, new"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)
