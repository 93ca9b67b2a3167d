"""However large what the apiserver has stored is, it does not hold up the event loop: work is counted, not timed."""

import copy
import json
from typing import Any

import pytest
from rljob_operator.plan import accept
from rljob_operator.render.children import Wanted, children
from rljob_operator.render.rayjob import ray_job
from rljob_operator.settings import Settings
from rljob_trainer.config.free_form import FIELD_ELEMENTS

from tests.conftest import World, job_manifest
from tests.test_lifecycle import start
from tests.work import calls

GROUPS = (("trainer", "pod"), ("trainer", "headPod"), ("rollout", "pod"), ("retriever", "pod"))
ETCD_BYTES = 1_400_000
"""Nearly the most that etcd stores of an object."""


def new_elements(count: int) -> Any:
    return {"spec": {"containers": [{"name": "x", "env": [{"name": f"e{i}"} for i in range(count)]}]}}


def one_element_again_and_again(count: int) -> Any:
    env = [{"name": f"e{i}"} for i in range(count // 2)]
    return {"spec": {"containers": [{"name": "x", "env": env}, *({"name": "x"} for _ in range(count // 2))]}}


def deletions(count: int) -> Any:
    names = [f"e{i}" for i in range(count // 2)]
    env = [{"name": name} for name in names] + [{"name": name, "$patch": "delete"} for name in reversed(names)]
    return {"spec": {"containers": [{"name": "x", "env": env}]}}


def wide(count: int) -> Any:
    return {"spec": {f"k{i}": {} for i in range(count)}}


SHAPES = (new_elements, one_element_again_and_again, deletions, wide)


def with_patch(patch: Any, group: tuple[str, str] = ("rollout", "pod")) -> dict[str, Any]:
    raw = job_manifest()
    raw["metadata"]["uid"] = "u"
    raw["spec"].setdefault(group[0], {})[group[1]] = {"podTemplatePatch": patch}
    return raw


def render(raw: dict[str, Any]) -> None:
    """All that is made of a job that has begun."""
    problems, context = accept(raw, Settings(), started=True)
    assert not problems
    assert context is not None
    assert not context.unread
    children(context, Wanted(attempt=1, request={}))
    ray_job(context, 1, None)


@pytest.mark.parametrize("shape", SHAPES)
def test_twice_the_patch_of_a_job_that_has_begun_is_twice_the_work(shape: Any) -> None:
    render(with_patch(shape(10)))
    least = calls(lambda: render(with_patch(shape(10))))
    once, twice = (calls(lambda n=n: render(with_patch(shape(n)))) - least for n in (1000, 2000))
    assert twice < 2.2 * once


@pytest.mark.parametrize("group", GROUPS)
def test_a_patch_as_large_as_can_be_stored_is_refused_unread(group: tuple[str, str], monkeypatch: Any) -> None:
    patch = one_element_again_and_again(82_000)
    raw = with_patch(patch, group)
    assert ETCD_BYTES < len(json.dumps(raw)) < 1_600_000
    monkeypatch.setattr("rljob_operator.plan.whole", lambda _: pytest.fail("it is parsed"))
    problems, context = accept(raw, Settings(), started=False)
    path = f"spec.{'.'.join(group)}.podTemplatePatch"
    assert problems == [f"{path}: has more than {FIELD_ELEMENTS} entries, in maps and lists at all levels"]
    assert context is None


async def test_a_refused_job_says_so_in_its_status_and_goes_on_once_it_is_mended(make_world) -> None:
    world: World = make_world(with_patch(wide(FIELD_ELEMENTS + 1)))
    await world.settle()
    accepted = world.condition("Accepted")
    assert (accepted["status"], accepted["reason"]) == ("False", "InvalidSpec")
    assert accepted["message"].startswith("spec.rollout.pod.podTemplatePatch: has more than 10000 entries")
    assert world.names("ServiceAccount") == []
    world.change(rollout={"pod": {}})
    await world.settle()
    assert world.condition("Accepted")["status"] == "True"


async def test_a_job_that_has_begun_is_not_judged_by_its_size(make_world) -> None:
    """An operator of a version without these limits has accepted it."""
    world: World = make_world(job_manifest())
    await start(world)
    world.kube.objects["RLJob", "demo"]["spec"]["rollout"]["pod"] = {
        "podTemplatePatch": {"metadata": {"annotations": {f"k{i}": "v" for i in range(FIELD_ELEMENTS + 1)}}}
    }
    before = copy.deepcopy(world.status["conditions"])
    world.report(step=7)
    await world.settle()
    assert (world.status["phase"], world.status["step"]) == ("Running", 7)
    assert [its for its in world.status["conditions"] if its["type"] == "Accepted"] == [
        its for its in before if its["type"] == "Accepted"
    ]
