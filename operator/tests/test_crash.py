"""The operator is killed after its n-th write, for every n, and starts again: the end is the same as without."""

import copy

import pytest

from tests.conftest import World, job_manifest
from tests.test_kueue import Kueue


async def _begin(world: World) -> None:
    await world.settle()
    world.retriever_ready()
    await world.settle()


async def _succeed(world: World, attempt: int) -> None:
    world.report(step=10, stage="Done", state="Succeeded", exitCode=0)
    await world.settle()
    world.ray_job_ends(attempt, "Complete")
    await world.settle()


async def _retry_then_success(world: World) -> None:
    await _begin(world)
    world.running(1, lastCommit={"name": "0001-ab/commits/step-000002", "step": 2})
    await world.settle()
    world.report(state="Failed", exitCode=1, message="rank 1 died")
    await world.settle()
    world.collect()
    world.later(5)
    await world.settle()
    world.running(2, step=5)
    await world.settle()
    await _succeed(world, 2)


async def _suspend_resume_delete(world: World) -> None:
    await _begin(world)
    world.running()
    await world.settle()
    world.change(lifecycle={"suspend": True})
    await world.settle()
    world.report(step=4, state="Suspended", exitCode=4, lastCommit={"name": "0001-ab/commits/step-000004", "step": 4})
    await world.settle()
    world.collect()
    await world.settle()
    world.change(lifecycle={"suspend": False})
    await _begin(world)
    world.running(2, step=4)
    await world.settle()
    world.delete()
    await world.settle()
    world.collect()
    await world.settle()


async def _preempted_then_success(world: World) -> None:
    await _begin(world)
    kueue = Kueue(world)
    await world.settle()
    kueue.admit()
    await world.settle()
    world.running(1, lastCommit={"name": "0001-ab/commits/step-000002", "step": 2})
    await world.settle()
    kueue.evict()
    await world.settle()
    kueue.at_rest()
    await world.settle()
    world.report(state="Suspended", exitCode=4, lastCommit={"name": "0001-ab/commits/step-000003", "step": 3})
    await world.settle()
    world.collect()
    world.kube.objects.pop(("Workload", "rayjob-demo-1-x"), None)
    await world.settle()
    Kueue(world, attempt=2).admit()
    await world.settle()
    world.running(2, step=5)
    await world.settle()
    await _succeed(world, 2)


async def _scaled_then_success(world: World) -> None:
    await _begin(world)
    world.running()
    await world.settle()
    for replicas in (3, 2):
        world.change(rollout={"replicas": replicas})
        await world.settle()
    await _succeed(world, 1)


STORIES = [_retry_then_success, _suspend_resume_delete, _preempted_then_success, _scaled_then_success]


def _world(story: object) -> World:
    queue = {"lifecycle": {"queue": {"name": "team-a"}}} if story is _preempted_then_success else {}
    return World(job_manifest(**queue), kueue=True)


def _end(world: World) -> object:
    """All objects, without what counts writes."""
    objects = copy.deepcopy(world.kube.objects)
    for obj in objects.values():
        for counted in ("resourceVersion", "generation", "uid", "creationTimestamp"):
            obj["metadata"].pop(counted, None)
        obj["metadata"].pop("ownerReferences", None)
        (obj.get("status") or {}).pop("observedGeneration", None)
    return objects


@pytest.mark.slow
@pytest.mark.parametrize("story", STORIES)
async def test_killed_after_any_write(story):
    undisturbed = _world(story)
    await story(undisturbed)
    writes = len(undisturbed.kube.writes)
    assert writes > 20
    for n in range(1, writes + 1):
        world = _world(story)
        world.kube.die_after = n
        await story(world)
        assert world.kube.die_after is None, f"write {n} was never made"
        assert _end(world) == _end(undisturbed), f"killed after write {n}: {world.kube.writes[n - 1]}"


@pytest.mark.parametrize("story", STORIES)
async def test_killed_after_every_write(story):
    """Not one write goes by without a crash, and still the end is reached."""
    undisturbed, world = _world(story), _world(story)
    await story(undisturbed)
    original = world.kube._wrote

    def dying(what: str) -> None:
        world.kube.die_after = len(world.kube.writes) + 1
        original(what)

    world.kube._wrote = dying
    settle = world.settle
    world.settle = lambda limit=200: settle(limit)
    await story(world)
    assert _end(world) == _end(undisturbed)


async def test_attempt_is_recorded_before_it_is_made_and_its_end_before_it_is_deleted():
    world = World(job_manifest())
    await _retry_then_success(world)
    writes = world.kube.writes
    made, deleted = writes.index("create RayJob/demo-1"), writes.index("delete RayJob/demo-1")
    assert "patch RLJob/demo/status" in writes[:made]
    assert "patch RLJob/demo/status" in writes[made + 1 : deleted]
