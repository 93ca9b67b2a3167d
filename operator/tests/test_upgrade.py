"""Another version of the operator, with other defaults, takes over from the one before: what changes of a job."""

import copy
from dataclasses import replace

from tests.conftest import World, job_manifest
from tests.test_lifecycle import start

NEWER = {"trainer_image": "rljob/trainer:newer", "retriever_image": "rljob/retriever:newer"}


def image(world: World, kind: str, name: str) -> str:
    spec = world.get(kind, name)["spec"]
    if kind == "RayJob":
        spec = spec["rayClusterSpec"]["headGroupSpec"]
    return str(spec["template"]["spec"]["containers"][0]["image"])


def upgraded(world: World) -> None:
    world.settings = replace(world.settings, **NEWER)


async def test_an_operator_like_the_one_before_writes_nothing(world):
    await start(world)
    world.settings = replace(world.settings)
    writes = len(world.kube.writes)
    await world.settle()
    assert len(world.kube.writes) == writes


async def test_an_attempt_keeps_its_image_and_the_next_has_the_new_one(world):
    await start(world)
    before = copy.deepcopy(world.get("RayJob", "demo-1"))
    upgraded(world)
    await world.settle()
    assert world.get("RayJob", "demo-1") == before
    assert (world.status["phase"], world.status["attempt"]) == ("Running", 1)

    world.change(lifecycle={"suspend": True})
    world.report(step=4, state="Suspended", exitCode=4)
    await world.settle()
    world.collect(1)
    await world.settle()
    world.change(lifecycle={"suspend": False})
    await world.settle()
    world.retriever_ready()
    await world.settle()
    assert image(world, "RayJob", "demo-2") == NEWER["trainer_image"]


async def test_the_retriever_has_the_new_image_at_once_while_the_attempt_goes_on(world):
    await start(world)
    upgraded(world)
    await world.settle()
    assert image(world, "Deployment", "demo-retriever") == NEWER["retriever_image"]
    assert (world.status["phase"], world.status["attempt"]) == ("Running", 1)


async def test_images_that_the_job_names_stay(make_world):
    manifest = job_manifest()
    manifest["spec"]["images"] = {"trainer": "mine/trainer:1", "retriever": "mine/retriever:1"}
    world = make_world(manifest)
    await start(world)
    upgraded(world)
    writes = len(world.kube.writes)
    await world.settle()
    assert len(world.kube.writes) == writes
    assert image(world, "Deployment", "demo-retriever") == "mine/retriever:1"
