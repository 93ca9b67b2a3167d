"""A manifest is read whole, or as much of it as can be read."""

import copy

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rljob_operator.state.manifest import readable, status_of, whole

from tests.conftest import job_manifest
from tests.test_lifecycle import start

WORSE = {
    "a field of a later version": (("rollout", "speculation"), {"draft": 4}, "spec.rollout.speculation"),
    "a value of a later version": (("trainer", "backend"), "later", "spec.trainer.backend"),
    "in a list": (("reward", "functions", 0, "smooth"), True, "spec.reward.functions.0.smooth"),
    "in a union": (("rollout", "generate", "search", "rerank"), "yes", "search.rerank"),
}


def worse(path: tuple, value: object) -> dict:
    manifest = copy.deepcopy(job_manifest())
    where = manifest["spec"]
    for key in path[:-1]:
        where = where[key] if isinstance(key, int) else where.setdefault(key, {})
    where[path[-1]] = value
    return manifest


@pytest.mark.parametrize("name", WORSE)
def test_what_cannot_be_read_is_left_out_and_named(name):
    path, value, said = WORSE[name]
    manifest = worse(path, value)
    assert whole(manifest)[0] is None
    before = copy.deepcopy(manifest)
    job, unread = readable(manifest)
    assert manifest == before
    assert job is not None
    assert job.spec.rollout == whole(job_manifest())[0].spec.rollout
    assert len(unread) == 1
    assert said in unread[0]


def test_a_whole_manifest_is_read_as_it_is():
    assert readable(job_manifest()) == whole(job_manifest())


@pytest.mark.parametrize("spec", [None, "text", [], {}])
def test_without_a_spec_nothing_can_be_read(spec):
    job, unread = readable(job_manifest() | {"spec": spec})
    assert job is None
    assert unread


@given(st.dictionaries(st.text(max_size=6), st.recursive(st.none() | st.integers() | st.text(max_size=4), st.lists)))
def test_whatever_is_added_to_a_section_is_no_reason_to_stop(extra):
    manifest = job_manifest()
    known = set(manifest["spec"]["rollout"])
    manifest["spec"]["rollout"] |= {key: value for key, value in extra.items() if key not in known}
    job, unread = readable(manifest)
    assert job is not None or len(unread) > 0


async def test_a_job_that_has_begun_goes_on_under_a_version_that_reads_less(world):
    await start(world)
    world.change(rollout={"speculation": {"draft": 4}})
    await world.settle()
    accepted = world.condition("Accepted")
    assert (accepted["status"], world.status["phase"]) == ("True", "Running")
    assert "spec.rollout.speculation" in accepted["message"]
    world.report(step=10, stage="Done", state="Succeeded", exitCode=0)
    await world.settle()
    assert world.status["phase"] == "Succeeded"


async def test_a_job_that_has_not_begun_is_refused(world):
    world.change(rollout={"speculation": {"draft": 4}})
    await world.settle()
    accepted = world.condition("Accepted")
    assert (accepted["status"], accepted["reason"]) == ("False", "InvalidSpec")
    assert "spec.rollout.speculation" in accepted["message"]
    assert not world.names("RayJob")


async def test_a_status_that_a_later_version_has_written_is_read_but_for_its_news(world):
    await start(world)
    status = world.kube.objects["RLJob", "demo"]["status"]
    status["phase"], status["attempts"][0]["reason"], status["forecast"] = "Rehearsing", "Bored", {"eta": "soon"}
    world.report(step=10, stage="Done", state="Succeeded", exitCode=0)
    await world.settle()
    assert (world.status["phase"], world.status["attempts"][0]["reason"]) == ("Succeeded", "Succeeded")
    assert "forecast" not in world.status


def test_what_decides_about_attempts_is_not_guessed():
    attempt = {"number": 1, "rayJob": "demo-1", "state": "Hibernating"}
    with pytest.raises(ValueError, match=r"attempts\.0\.state"):
        status_of({"status": {"attempt": 1, "attempts": [attempt]}})
