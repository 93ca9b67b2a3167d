"""However large what the apiserver has stored is, it does not hold up the event loop: work is counted, not timed."""

import asyncio
import copy
import json
import tracemalloc
from typing import Any

import pytest
from prometheus_client import CollectorRegistry
from rljob_api.manifest.free_form import FIELD_ELEMENTS
from rljob_operator.controller import plan
from rljob_operator.controller.controller import Controller
from rljob_operator.controller.plan import accept
from rljob_operator.metrics import Metrics
from rljob_operator.resources.children import Wanted, children
from rljob_operator.resources.rayjob import ray_job
from rljob_operator.settings import Settings

from tests.conftest import NAMESPACE, World, job_manifest
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
    monkeypatch.setattr("rljob_operator.controller.plan.whole", lambda _: pytest.fail("it is parsed"))
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


class TestMemory:
    """What is remembered of a job is remembered once."""

    EDITS = 24

    def world(self) -> World:
        files = {f"module_{i}.py": f"{i}" + "#" * 60_000 for i in range(8)}
        return World(job_manifest("edited", code={"files": files}))

    @pytest.mark.parametrize("field", ["annotations", "labels"])
    def test_a_large_job_whose_metadata_is_edited_again_and_again(self, field: str) -> None:
        world = self.world()
        asyncio.run(world.settle())
        job = world.kube.objects["RLJob", "edited"]
        tracemalloc.start()
        try:
            for edit in range(self.EDITS):
                job["metadata"][field] = {"team": f"t{edit}"}
                world.kube._stamp(job)
                asyncio.run(world.settle())
            held, _ = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        # Its text in the fake cluster, in the model and in what is rendered; half a megabyte each.
        assert held < 6_000_000

    def test_annotations_are_not_rendered(self, monkeypatch: pytest.MonkeyPatch) -> None:
        world = self.world()
        asyncio.run(world.settle())
        monkeypatch.setattr(plan, "accept", lambda *_, **__: pytest.fail("it is judged anew"))
        world.kube.objects["RLJob", "edited"]["metadata"]["annotations"] = {"team": "x"}
        asyncio.run(world.settle())

    @pytest.mark.parametrize("started", [False, True])
    def test_a_changed_spec_is_seen_whatever_the_generation_says(self, started: bool) -> None:
        """As after a change of the definition's defaults."""
        world = World(job_manifest("edited"))
        asyncio.run(start(world) if started else world.settle())
        world.kube.objects["RLJob", "edited"]["spec"]["retriever"]["port"] = 8123
        asyncio.run(world.settle())
        assert world.get("Service", "edited-retriever")["spec"]["ports"][0]["port"] == 8123

    def test_labels_are_the_drivers_to_read(self) -> None:
        world = World(job_manifest("edited"))
        asyncio.run(world.settle())
        world.kube.objects["RLJob", "edited"]["metadata"]["labels"] = {"team": "x"}
        asyncio.run(world.settle())
        written = json.loads(world.get("ConfigMap", "edited-config")["data"]["rljob.json"])
        assert written["metadata"]["labels"] == {"team": "x"}

    def test_two_operators_settings_do_not_meet(self) -> None:
        one, other = World(job_manifest("edited")), World(job_manifest("edited"), trainer_image="other:1")
        for world in (one, other):
            asyncio.run(start(world))
        images = [world.get("RayJob", "edited-1")["spec"]["rayClusterSpec"]["headGroupSpec"] for world in (one, other)]
        assert images[0] != images[1]

    async def test_nothing_is_remembered_of_a_job_that_is_gone(self) -> None:
        world = World(job_manifest("edited"))
        controller = Controller(world.kube, Settings(), Metrics(CollectorRegistry()))
        await world.settle()
        before = (len(plan._ACCEPTED), len(plan._CHILDREN))
        world.delete()
        for kind, name in list(world.kube.objects):
            if kind != "RLJob":
                del world.kube.objects[kind, name]
        await world.settle()
        assert not world.has("RLJob", "edited")
        await controller._handle((NAMESPACE, "edited"))
        assert (len(plan._ACCEPTED), len(plan._CHILDREN)) == (before[0] - 1, before[1] - 1)
