"""A job's document is read by processes of another version: nothing is lost, and nothing that matters is ignored."""

import importlib
import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as tests
from pydantic import BaseModel, Field
from rljob_api.codegen.crd import schema
from rljob_api.contract import job_document
from rljob_api.contract.job_document import (
    MUST_ANNOTATION,
    VERSION,
    VERSION_ANNOTATION,
    Since,
    Version,
    document,
    load_document,
    pruned,
    spelt_out,
)
from rljob_api.errors import ManifestError, UserError
from rljob_api.manifest.explain import child_model
from rljob_api.manifest.load import load
from rljob_api.v1alpha1.algorithm import AlgorithmSpec
from rljob_api.v1alpha1.base import ApiModel
from rljob_api.v1alpha1.job import RLJob, RLJobSpec
from rljob_api.v1alpha1.reward import RewardFunction, RewardSpec
from rljob_api.v1alpha1.tracking import TrackingSpec
from rljob_trainer.orchestrator.job_directory import claim, learning_fields

from .test_config_checks import specs

EXIT_USER_ERROR = 2
NEXT = Version(VERSION.major, VERSION.minor + 1)


class NewerFunction(RewardFunction):
    sharpness: Annotated[float, Since(str(NEXT))] = 1.0


class NewerReward(RewardSpec):
    functions: list[NewerFunction]  # type: ignore[assignment]


class NewerAlgorithm(AlgorithmSpec):
    novelty: Annotated[float, Since(str(NEXT))] = 0.0


class NewerTracking(TrackingSpec):
    verbose: Annotated[bool, Since(str(NEXT), reading="May")] = False


class Sandbox(ApiModel):
    image: str = "plain"


class NewerSpec(RLJobSpec):
    algorithm: NewerAlgorithm = Field(default_factory=NewerAlgorithm)
    reward: NewerReward | None = None
    tracking: NewerTracking = Field(default_factory=NewerTracking)
    sandbox: Annotated[Sandbox, Since(str(NEXT))] = Field(default_factory=Sandbox)
    colour: Annotated[str, Since(str(NEXT), reading="Never")] = "none"


class NewerJob(RLJob):
    spec: NewerSpec


def manifest(**spec: Any) -> dict[str, Any]:
    return {
        "apiVersion": "rljob.io/v1alpha1",
        "kind": "RLJob",
        "metadata": {"name": "demo"},
        "spec": {"model": {"path": "org/model"}, "reward": {"functions": [{"name": "em"}]}} | spec,
    }


@pytest.fixture
def written(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """Writes a job as the next version does; the file's path."""

    def write(**spec: Any) -> Path:
        job = NewerJob.model_validate(manifest(**spec))
        with monkeypatch.context() as patch:
            patch.setattr(job_document, "VERSION", NEXT)
            path = tmp_path / "rljob.json"
            path.write_text(json.dumps(document(job, {"name": "demo"})))
        return path

    return write


@given(specs)
@tests(max_examples=150, suppress_health_check=list(HealthCheck))
def test_what_is_written_is_read_back_as_an_equal_job(tmp_path_factory: pytest.TempPathFactory, spec: Any) -> None:
    job = RLJob.model_validate(manifest() | {"spec": spec})
    path = tmp_path_factory.getbasetemp() / "round-trip.json"
    for text in (document(job, {"name": "demo"}), manifest() | {"spec": spelt_out(job.spec)}):
        path.write_text(json.dumps(text))
        assert load_document(path).spec == job.spec


def test_a_default_of_the_place_is_not_taken_for_that_of_the_model() -> None:
    class Rate(ApiModel):
        lr: float = 1.0
        beta: float = 0.9

    class Both(ApiModel):
        here: Rate = Field(default_factory=lambda: Rate(lr=2.0))

    for given_value, text in (
        ({}, {}),
        ({"here": {"lr": 2.0}}, {}),
        ({"here": {"lr": 1.0}}, {"here": {}}),
        ({"here": {"lr": 2.0, "beta": 0.5}}, {"here": {"lr": 2.0, "beta": 0.5}}),
    ):
        value = Both.model_validate(given_value)
        assert pruned(value) == text
        assert Both.model_validate(text) == value


def test_the_document_is_what_was_chosen_and_its_version() -> None:
    job = RLJob.model_validate(manifest(seed=42, rollout={"batchSize": 16, "engineArgs": {"a": None}}))
    assert document(job, {"name": "demo"}) == manifest(rollout={"engineArgs": {"a": None}}) | {
        "metadata": {"name": "demo", "annotations": {VERSION_ANNOTATION: str(VERSION)}}
    }


def test_a_job_without_newer_fields_is_written_as_before(written: Any) -> None:
    spec = {"tracking": {"logCompletions": 2}, "algorithm": {"epsClip": 0.1}}
    text = json.loads(written(**spec).read_text())
    before = document(RLJob.model_validate(manifest(**spec)), {"name": "demo"})
    assert text["spec"] == before["spec"]
    assert text["metadata"]["annotations"] == {VERSION_ANNOTATION: str(NEXT)}


def test_what_may_be_ignored_is_named_in_a_warning(written: Any, caplog: pytest.LogCaptureFixture) -> None:
    path = written(tracking={"verbose": True, "logCompletions": 2}, colour="red")
    with caplog.at_level(logging.WARNING):
        job = load_document(path)
    assert job == RLJob.model_validate(
        manifest(tracking={"logCompletions": 2})
        | {"metadata": {"name": "demo", "annotations": {VERSION_ANNOTATION: str(NEXT)}}}
    )
    (warning,) = caplog.messages
    assert "spec.tracking.verbose" in warning
    assert f"written by contract {NEXT}; this image has {VERSION}" in warning


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ({"algorithm": {"novelty": 0.5}}, "spec.algorithm.novelty"),
        (
            {"reward": {"functions": [{"name": "em"}, {"name": "em", "sharpness": 2.0}]}},
            "spec.reward.functions[1].shar",
        ),
        ({"sandbox": {"image": "other"}}, "spec.sandbox,"),
    ],
    ids=["a field", "in a list", "a section"],
)
def test_what_decides_the_training_is_refused_in_one_sentence(written: Any, spec: dict[str, Any], said: str) -> None:
    path = written(**spec)
    with pytest.raises(UserError) as refused:
        load_document(path)
    assert f"this image does not know {said}" in refused.value.message
    assert f"contract {NEXT}" in refused.value.message
    assert "\n" not in refused.value.message
    assert "spec.images" in str(refused.value.hint)
    # The retriever and the preparation do not read that part.
    assert load_document(path, ("spec", "retriever")).spec.model.path == "org/model"


def test_the_driver_ends_as_on_a_users_mistake(
    written: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("numpy")
    driver = importlib.import_module("rljob_trainer.driver")
    monkeypatch.setattr(driver, "_log_to", lambda path: None)
    path = written(algorithm={"novelty": 0.5})
    arguments = ["--job", str(path), "--dir", str(tmp_path), "--incarnation", "0001-0123abcd", "--local"]
    assert driver.main(arguments) == EXIT_USER_ERROR
    assert "spec.algorithm.novelty" in capsys.readouterr().err
    assert "spec.algorithm.novelty" in json.loads((tmp_path / "progress.json").read_text())["message"]


def test_every_process_reads_what_a_newer_operator_wrote(
    written: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("faiss")
    pytest.importorskip("fastapi")
    path = written(tracking={"verbose": True}, algorithm={"novelty": 0.5})
    arguments = ["--job", str(path), "--dir", str(tmp_path)]
    assert importlib.import_module("rljob_trainer.prepare").main(arguments) == 0
    for process in ("build", "__main__"):
        module = importlib.import_module(f"rljob_trainer.retriever.{process}")
        assert module.main(arguments) == EXIT_USER_ERROR
        assert "spec.retriever: the job has none" in capsys.readouterr().err


def test_a_value_of_a_newer_version_is_refused_with_the_versions(written: Any) -> None:
    path = written()
    text = json.loads(path.read_text())
    text["spec"]["placement"] = {"type": "elsewhere"}
    path.write_text(json.dumps(text))
    with pytest.raises(
        UserError, match=rf"spec.placement.type: .*contract {NEXT}; this image has {VERSION}"
    ) as refused:
        load_document(path)
    assert not isinstance(refused.value, ManifestError)
    assert "newer image" in str(refused.value.hint)


@pytest.mark.parametrize(
    ("annotations", "said"),
    [
        ({VERSION_ANNOTATION: "2.0"}, "was written for images of contract 2.0; this one reads 1.x"),
        ({VERSION_ANNOTATION: "new"}, "the version of the contract: 'new' is not a version such as"),
        ({VERSION_ANNOTATION: "1.99", MUST_ANNOTATION: "{"}, "the version of the contract"),
        ({VERSION_ANNOTATION: "1.99", MUST_ANNOTATION: '{"a": 1}'}, "is not a list of locations"),
    ],
)
def test_a_version_that_cannot_be_read_is_refused(annotations: dict[str, str], said: str, tmp_path: Path) -> None:
    path = tmp_path / "rljob.json"
    path.write_text(json.dumps(manifest() | {"metadata": {"name": "demo", "annotations": annotations}}))
    with pytest.raises(UserError) as refused:
        load_document(path)
    assert said in refused.value.message


@pytest.mark.parametrize("annotations", [{}, {VERSION_ANNOTATION: str(VERSION)}], ids=["none", "this version"])
def test_what_a_user_mistypes_stays_refused(annotations: dict[str, str], tmp_path: Path) -> None:
    path = tmp_path / "rljob.json"
    text = manifest(rollout={"batchSze": 3}) | {"metadata": {"name": "demo", "annotations": annotations}}
    path.write_text(json.dumps(text))
    with pytest.raises(ManifestError, match="did you mean batchSize"):
        load_document(path)


def test_a_manifest_of_a_users_is_read_strictly_whatever_its_annotations_say(tmp_path: Path) -> None:
    path = tmp_path / "job.yaml"
    stamped = {"metadata": {"name": "demo", "annotations": {VERSION_ANNOTATION: "1.99"}}}
    path.write_text(json.dumps(manifest(rollout={"batchSze": 3}) | stamped))
    with pytest.raises(ManifestError, match="unknown field"):
        load(path)


def test_a_users_annotations_do_not_pass_for_the_writers() -> None:
    forged = {VERSION_ANNOTATION: "9.9", MUST_ANNOTATION: '[["spec"]]', "team": "a"}
    text = document(RLJob.model_validate(manifest()), {"name": "demo", "annotations": forged})
    assert text["metadata"]["annotations"] == {VERSION_ANNOTATION: str(VERSION), "team": "a"}


def test_a_newer_image_goes_on_in_the_directory_of_an_older_one_and_back(tmp_path: Path) -> None:
    older, newer = RLJob.model_validate(manifest()), NewerJob.model_validate(manifest())
    assert learning_fields(newer) == learning_fields(older)
    claim(tmp_path, older, may_resume=False)
    commit = tmp_path / "attempts/0001-aabbccdd/commits/step-000003"
    commit.mkdir(parents=True)
    (commit / "manifest.json").write_text("{}")
    claim(tmp_path, newer, may_resume=True)
    claim(tmp_path, older, may_resume=True)
    set_now = NewerJob.model_validate(manifest(algorithm={"novelty": 0.5}))
    with pytest.raises(UserError, match=r"spec\.algorithm\.novelty"):
        claim(tmp_path, set_now, may_resume=True)


def _models(model: type[BaseModel], seen: set[type[BaseModel]]) -> Iterator[type[BaseModel]]:
    if model not in seen:
        seen.add(model)
        yield model
        for field in model.model_fields.values():
            if child := child_model(field.annotation)[0]:
                yield from _models(child, seen)


def test_every_field_has_the_name_that_it_has_in_a_document() -> None:
    """A field without one (its model stood behind a forward reference) would be taken for another version's."""
    nameless = [
        f"{model.__name__}.{name}"
        for model in _models(RLJob, set())
        for name, field in model.model_fields.items()
        if field.alias is None
    ]
    assert nameless == []
    assert schema()["properties"]["spec"]["properties"].keys() == {
        field.alias for field in RLJobSpec.model_fields.values()
    }


def test_marks_are_of_this_contract_and_on_fields_with_a_default() -> None:
    for model in _models(RLJob, set()):
        for name, field in model.model_fields.items():
            if (since := job_document.since_of(field)) is not None:
                assert job_document.FIRST < Version.parse(since.version) <= VERSION, f"{model.__name__}.{name}"
                assert not field.is_required(), f"{model.__name__}.{name}"
