"""What earlier versions wrote is read, and what is written now is read by them, by what was recorded of each.

A corpus is recorded once, by `record.py`, and never changed: a test that fails here names a break of the contract
between the operator and an image of another version (docs/upgrade.md).
"""

import argparse
import asyncio
import json
import logging
from pathlib import Path
from typing import Annotated, Any

import jsonschema
import pytest
from pydantic import Field
from rljob_api.contract import names
from rljob_api.contract.job_document import VERSION, Since, Version, load_document, since_of
from rljob_api.contract.progress import Preparation
from rljob_api.contract.request import wants_scale, wants_suspend
from rljob_api.manifest.explain import child_model
from rljob_api.manifest.load import without_nulls
from rljob_api.v1alpha1.job import RLJob, RLJobSpec
from rljob_api.v1alpha1.tracking import TrackingSpec
from rljob_operator.resources import config_maps
from rljob_operator.resources.context import Context
from rljob_operator.settings import Settings
from rljob_operator.state.observe import Observed

from tests.compat import record
from tests.compat.recorded import (
    CORPORA,
    commands,
    corpus_of,
    each_corpus,
    each_job,
    each_report,
    entry_point,
    load,
)
from tests.conftest import NAMESPACE, World, job_manifest

# The job's document


@each_job
def test_a_job_that_was_written_is_read_as_what_its_user_meant(path: Path, tmp_path: Path) -> None:
    recorded = load(path)
    document = tmp_path / "rljob.json"
    document.write_text(json.dumps(recorded["document"]))
    assert load_document(document).spec == RLJob.model_validate(without_nulls(recorded["manifest"])).spec


@each_job
def test_what_is_written_now_can_be_read(path: Path) -> None:
    now = record.job(load(path)["manifest"])["document"]
    jsonschema.validate(now, load(corpus_of(path) / "schemas/job.json"))


@each_job
def test_no_default_is_another_now(path: Path) -> None:
    """Each side fills in its own: what was meant then is part of what is meant now."""
    recorded = load(path)
    now = RLJob.model_validate(without_nulls(recorded["manifest"])).spec
    assert contains(now.to_api(), recorded["meant"])


class NewerTracking(TrackingSpec):
    verbose: Annotated[bool, Since("1.1")] = False


class NewerSpec(RLJobSpec):
    tracking: NewerTracking = Field(default_factory=NewerTracking)


class NewerJob(RLJob):
    spec: NewerSpec


def rendered_newer(**tracking: Any) -> Any:
    job = NewerJob.model_validate(job_manifest(tracking={"logCompletions": 2} | tracking))
    made = config_maps.config(Context(job, NAMESPACE, "uid", Settings()))
    return json.loads(made["data"]["rljob.json"])


@each_corpus
def test_a_new_field_reaches_an_older_image_only_when_it_is_used(corpus: Path) -> None:
    schema = load(corpus / "schemas/job.json")
    unused = rendered_newer()
    assert unused["spec"]["tracking"] == {"logCompletions": 2}
    jsonschema.validate(unused, schema)
    used = rendered_newer(verbose=True)
    assert json.loads(used["metadata"]["annotations"]["rljob.io/must-understand"]) == [["spec", "tracking", "verbose"]]
    with pytest.raises(jsonschema.ValidationError, match="'verbose' was unexpected"):
        jsonschema.validate(used, schema)


@each_corpus
def test_fields_that_came_later_are_marked_and_none_has_gone(corpus: Path) -> None:
    schema = load(corpus / "schemas/job.json")
    wrong = list(changes(RLJobSpec, schema["$defs"]["RLJobSpec"], schema, "spec", Version.parse(load_version(corpus))))
    assert wrong == []


def test_that_check_sees_an_unmarked_field_and_one_that_has_gone() -> None:
    class Careless(TrackingSpec):
        verbose: bool = False

    schema = load(CORPORA[0] / "schemas/job.json")
    section = dict(schema["$defs"]["TrackingSpec"])
    section["properties"] = section["properties"] | {"former": {"type": "string"}}
    found = list(changes(Careless, section, schema, "spec.tracking", Version(1, 0)))
    assert [text.split(":")[0] for text in found] == ["spec.tracking.former", "spec.tracking.verbose"]


def load_version(corpus: Path) -> str:
    return str(load(corpus / "contract.json"))


def changes(model: Any, recorded: Any, root: Any, at: str, since: Version) -> Any:
    """What of a model does not fit an earlier version's schema of it."""
    properties = recorded["properties"]
    fields = {field.alias: field for field in model.model_fields.values()}
    yield from (f"{at}.{key}: a field that jobs may use has gone" for key in properties if key not in fields)
    for key, field in fields.items():
        mark = since_of(field)
        if key not in properties:
            if mark is None or not since < Version.parse(mark.version) <= VERSION:
                yield f"{at}.{key}: give it Since(…) and raise VERSION, see rljob_api.contract.job_document"
            continue
        child, _ = child_model(field.annotation)
        if child is not None and (inner := object_in(properties[key], root)) is not None:
            yield from changes(child, inner, root, f"{at}.{key}", since)


def object_in(node: Any, root: Any) -> Any:
    """The schema of the object in a property: itself, an alternative, or an item."""
    if "$ref" in node:
        return root["$defs"][node["$ref"].rpartition("/")[2]]
    for branch in (*node.get("anyOf", ()), *node.get("allOf", ()), *([node["items"]] if "items" in node else ())):
        if (found := object_in(branch, root)) is not None:
            return found
    return None


# Command lines and environments


def parser_of(options: list[dict[str, Any]]) -> argparse.ArgumentParser:
    """The parser that was recorded."""
    types = {"int": int, "float": float, "Path": Path, None: str}
    parser = argparse.ArgumentParser(allow_abbrev=False, exit_on_error=False)
    for option in options:
        takes = {"type": types[option["type"]]} if option["takesValue"] else {"action": "store_true"}
        parser.add_argument(*option["flags"], required=option["required"], **takes)
    return parser


@each_job
def test_command_lines_of_now_are_taken_by_older_images(path: Path) -> None:
    entry_points = load(corpus_of(path) / "entry_points.json")
    lines = commands(record.job(load(path)["manifest"]))
    assert len(lines) >= 2
    for line in lines:
        _, unknown = parser_of(entry_points[entry_point(line)]).parse_known_args(line[3:])
        assert unknown == [], line


@each_job
def test_pods_have_what_older_images_find_in_them(path: Path) -> None:
    before, now = load(path), record.job(load(path)["manifest"])
    assert now["offered"] == before["offered"], "what the driver places ranks and engines by"
    assert before["containers"].keys() <= now["containers"].keys()
    for name, container in before["containers"].items():
        env = now["containers"][name]["env"]
        assert {key: env.get(key) for key in container["env"]} == container["env"], name
        for part in ("mounts", "ports"):
            assert set(container[part]) <= set(now["containers"][name][part]), name
        assert set(now["containers"][name]["probes"]) <= set(container["probes"]), name


@each_job
def test_a_new_operator_makes_nothing_anew(path: Path) -> None:
    """Neither the preparation of a job that waits for it, nor the pods of a retriever whose image the job names."""
    before, now = load(path), record.job(load(path)["manifest"])
    assert {key: now[key] for key in ("preparation", "retrieverDigest")} == {
        key: before[key] for key in ("preparation", "retrieverDigest")
    }


# Reports of the driver and of the preparation


def observed(**data: Any) -> Observed:
    name = names.progress("demo")
    child = {"kind": "ConfigMap", "metadata": {"name": name}, "data": {k: json.dumps(v) for k, v in data.items()}}
    return Observed(job={"metadata": {"name": "demo"}}, children={("ConfigMap", name): child})


@each_report
def test_a_report_of_an_older_driver_is_read_whole(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    recorded = load(path)
    report = observed(**{"progress.json": recorded}).progress()
    assert report is not None
    assert not caplog.messages
    schema = load(corpus_of(path) / "schemas/progress.json")
    read_then = as_read(recorded, schema, schema)
    assert {"step", "state", "lastCommit", "health"} <= read_then.keys()
    assert contains(report.model_dump(by_alias=True, mode="json"), read_then)


def as_read(value: Any, schema: Any, root: Any) -> Any:
    """Of a report what an operator with this schema reads: only people read the rest."""
    if not isinstance(value, dict):
        return value
    found = object_in(schema, root) or schema
    known, others = found.get("properties"), found.get("additionalProperties")
    if known is None:
        return {
            key: as_read(inner, others, root) if isinstance(others, dict) else inner for key, inner in value.items()
        }
    return {key: as_read(inner, known[key], root) for key, inner in value.items() if key in known}


def contains(now: Any, before: Any) -> bool:
    """Whether everything that there was is there as it was; objects may have more."""
    if isinstance(now, dict) and isinstance(before, dict):
        return all(key in now and contains(now[key], value) for key, value in before.items())
    if isinstance(now, list) and isinstance(before, list):
        return len(now) == len(before) and all(map(contains, now, before))
    return bool(now == before)


@each_report
async def test_an_older_drivers_report_ends_its_attempt_as_it_says(path: Path) -> None:
    recorded = load(path) | {"attempt": 1}
    manifest = job_manifest()
    if recorded["earlyStop"]:
        manifest["spec"]["lifecycle"] = {"earlyStop": {"metric": "held-out/score", "atLeast": 0.9}}
    world = World(manifest)
    await world.settle()
    world.retriever_ready()
    await world.settle()
    world.running(1)
    world.report(**recorded)
    await world.settle()
    attempt = world.status["attempts"][0]
    assert attempt["state"] == recorded["state"]
    if recorded["reason"]:
        assert (attempt["reason"], attempt["exitCode"]) == (recorded["reason"], recorded["exitCode"])
    if recorded["lastCommit"]:
        assert world.status["lastCommit"]["name"] == recorded["lastCommit"]["name"]


@each_corpus
def test_reports_of_the_preparation_are_read_by_older_operators(corpus: Path) -> None:
    for report in record.preparation():
        jsonschema.validate(report, load(corpus / "schemas/preparation.json"))


@each_corpus
def test_older_reports_of_the_preparation_are_read(corpus: Path, caplog: pytest.LogCaptureFixture) -> None:
    for recorded in load(corpus / "preparation.json"):
        found = observed(**{"preparation.json": recorded}).preparation()
        assert found == Preparation(**recorded)
    assert not caplog.messages


NEWER_REPORT = {
    "attempt": 1, "state": "Running", "step": 4, "totalSteps": 9, "stage": "Distil", "sandboxes": {"busy": 3},
    "reward": {"mean": 0.5}, "goodput": 0.5, "stalled": {"message": ["a", "b"], "stack": "s.txt"},
    "engines": {"serving": [{"pod": "a"}, "b", {"pod": "c"}, "d"], "drained": ["e"]},
    "health": {"RewardStalled": {"policy": "Warn"}, "Novel": {"severity": 3}},
}  # fmt: skip


def test_what_a_newer_driver_says_otherwise_costs_that_part_alone(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        report = observed(**{"progress.json": NEWER_REPORT}).progress()
    assert report is not None
    assert (report.step, report.total_steps, report.goodput, report.reward) == (4, 9, 0.5, None)
    assert report.engines is not None
    assert (report.engines.serving, report.engines.drained) == (["b", "d"], ["e"])
    assert list(report.health) == ["RewardStalled"]
    (warning,) = caplog.messages
    assert "reward" in warning


@pytest.mark.parametrize(
    "change", [{"attempt": "first"}, {"step": -1}, {"totalSteps": None}, {"exitCode": [1]}], ids=str
)
def test_a_report_that_does_not_say_where_its_attempt_stands_is_none(
    change: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    assert observed(**{"progress.json": NEWER_REPORT | change}).progress() is None
    assert "cannot be read" in caplog.messages[-1]


def test_a_long_word_of_the_preparation_costs_that_word_alone() -> None:
    report = {"stage": "download of " + "x" * 80, "percent": 20, "amount": "1.0 of 5.0 GiB", "rate": 3}
    found = observed(**{"preparation.json": report}).preparation()
    assert found == Preparation(percent=20, amount="1.0 of 5.0 GiB")


# Requests to the driver

REQUEST_READER = {
    "type": "object",
    "required": ["suspend", "attempt"],
    "properties": {
        "suspend": {"type": "boolean"},
        "attempt": {"type": "integer"},
        "engines": {"type": ["integer", "null"], "minimum": 1},
        "drain": {"type": "array", "items": {"type": "string"}},
    },
}
"""What the driver of b3c9bbf reads; it ignores the rest."""


@each_corpus
def test_requests_of_older_operators_are_understood(corpus: Path) -> None:
    recorded = load(corpus / "requests.json")
    assert any(asked["suspend"] for asked in recorded)
    assert any(asked["scale"] and asked["scale"]["drain"] for asked in recorded)
    for asked in recorded:
        text, scale = json.dumps(asked["request"]), wants_scale(json.dumps(asked["request"]), 1)
        assert wants_suspend(text, 1) == asked["suspend"]
        assert (scale and {"engines": scale.engines, "drain": sorted(scale.drain)}) == asked["scale"]


def test_requests_of_now_are_understood_by_older_drivers() -> None:
    for asked in asyncio.run(record.requests(record.ROOT)):
        jsonschema.validate(asked["request"], REQUEST_READER)
