"""A job's directory belongs to one job, and its commits to one way of training."""

import copy
from pathlib import Path
from typing import Any

import pytest
from rljob_api.errors import UserError
from rljob_api.v1alpha1.job import RLJob
from rljob_trainer.orchestrator.job_directory import claim, has_commits, last_attempt, new_incarnation

from .conftest import MANIFEST


def job(**changes: Any) -> RLJob:
    """The tiny job with dotted fields of its manifest changed."""
    manifest = copy.deepcopy(MANIFEST)
    for path, value in changes.items():
        *folders, last = path.split("__")
        place = manifest
        for folder in folders:
            place = place.setdefault(folder, {})
        place[last] = value
    return RLJob.model_validate(manifest)


@pytest.fixture
def trained(tmp_path: Path) -> Path:
    """A directory with a commit of the tiny job."""
    claim(tmp_path, job(), may_resume=False)
    commit = tmp_path / "attempts/0001-aabbccdd/commits/step-000003"
    commit.mkdir(parents=True)
    (commit / "manifest.json").write_text("{}")
    return tmp_path


def test_the_same_job_goes_on(trained: Path) -> None:
    claim(trained, job(), may_resume=False)
    assert has_commits(trained)
    assert last_attempt(trained) == 1


def test_another_jobs_directory_is_refused(trained: Path) -> None:
    with pytest.raises(UserError, match="belongs to the job 'tiny', not to 'other'"):
        claim(trained, job(metadata__name="other"), may_resume=False)


@pytest.mark.parametrize(
    "change",
    [
        {"spec__seed": 6},
        {"spec__optimizer__lr": 0.1},
        {"spec__rollout__nSamplesPerPrompt": 8},
        {"spec__model__randomInit__hiddenSize": 32},
    ],
)
def test_other_settings_are_refused_by_name(change: dict[str, Any], trained: Path) -> None:
    field = next(iter(change)).replace("__", ".")
    with pytest.raises(UserError) as error:
        claim(trained, job(**change), may_resume=True)
    assert field in error.value.message


@pytest.mark.parametrize(
    "change",
    [
        {"spec__rollout__numRollout": 9},
        {"spec__rollout__replicas": 3},
        {"spec__checkpoint__saveInterval": 7},
        {"spec__evaluation__interval": 1},
        {"spec__lifecycle": {"backoffLimit": 9}},
    ],
)
def test_what_does_not_change_the_learning_may_change(change: dict[str, Any], trained: Path) -> None:
    claim(trained, job(**change), may_resume=False)


def test_settings_may_change_before_the_first_commit(tmp_path: Path) -> None:
    claim(tmp_path, job(), may_resume=False)
    claim(tmp_path, job(spec__seed=6), may_resume=False)


def test_never_refuses_and_replace_keeps_what_was_there_aside(trained: Path) -> None:
    checkpoint = MANIFEST["spec"]["checkpoint"]
    never = job(spec__checkpoint=checkpoint | {"overwrite": "Never"})
    with pytest.raises(UserError, match="overwrite is Never"):
        claim(trained, never, may_resume=False)
    claim(trained, never, may_resume=True)  # a retry of the same run is no second run
    claim(trained, job(spec__checkpoint=checkpoint | {"overwrite": "Replace"}, spec__seed=8), may_resume=False)
    assert not has_commits(trained)
    assert last_attempt(trained) == 0
    assert list(trained.glob("attempts-before-*/0001-aabbccdd/commits/step-000003/manifest.json"))


def test_commits_without_an_owner_are_refused(trained: Path) -> None:
    (trained / "job.json").unlink()
    with pytest.raises(UserError, match="whose they are cannot be told"):
        claim(trained, job(), may_resume=True)


def test_incarnations_are_named_by_attempt_and_id() -> None:
    assert new_incarnation(3, "0123abcd") == "0003-0123abcd"
    assert new_incarnation(3) != new_incarnation(3)
