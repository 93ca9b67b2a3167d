"""A status that only counts pods waits for more of them, a little; whatever else is new is written at once."""

import pytest
from rljob_operator.controller.reconcile import reconcile
from rljob_operator.controller.writes import StatusThrottle, only_counts

from tests.conftest import NAMESPACE, World, job_manifest


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
async def world():
    manifest = job_manifest()
    del manifest["spec"]["retriever"]
    manifest["spec"]["rollout"].pop("generate")
    world = World(manifest)
    await world.settle()
    return world


def head(world):
    world.pod("demo-1-head", {"rljob.io/job": "demo", "rljob.io/role": "head", "rljob.io/attempt": "1"})


async def test_a_count_waits_and_is_written_in_the_end(world, clock):
    throttle = StatusThrottle(5.0, clock)

    async def look():
        return (await reconcile(world.kube, NAMESPACE, "demo", world.settings, throttle=throttle))[0]

    await look()
    clock.now += 10.0
    await look()
    head(world)
    writes = len(world.kube.writes)
    assert await look() == 5.0
    clock.now += 4.0
    assert await look() == 1.0
    assert len(world.kube.writes) == writes
    clock.now += 1.0
    await look()
    assert world.kube.writes[writes:] == ["patch RLJob/demo/status"]
    assert world.status["head"] == {"desired": 1, "ready": 1}


async def test_what_is_new_takes_the_counts_along(world, clock):
    throttle = StatusThrottle(5.0, clock)
    await reconcile(world.kube, NAMESPACE, "demo", world.settings, throttle=throttle)
    head(world)
    await reconcile(world.kube, NAMESPACE, "demo", world.settings, throttle=throttle)
    assert world.status["head"]["ready"] == 0
    world.report(attempt=1, step=1, totalSteps=10, state="Running")
    await reconcile(world.kube, NAMESPACE, "demo", world.settings, throttle=throttle)
    assert world.status["phase"] == "Running"
    assert world.status["head"]["ready"] == 1


CONDITION = {"type": "ClusterReady", "status": "False", "reason": "PodsStarting", "message": "pods ready: head 0/1"}
OLD = {"phase": "Starting", "attempt": 1, "message": "pods ready: head 0/1", "conditions": [CONDITION]}


@pytest.mark.parametrize(
    ("change", "waits"),
    [
        ({"head": {"desired": 1, "ready": 1}, "message": "pods ready: head 1/1"}, True),
        ({"conditions": [CONDITION | {"message": "pods ready: head 1/1"}]}, True),
        ({"conditions": [CONDITION | {"reason": "Unschedulable"}]}, False),
        ({"conditions": [CONDITION | {"status": "True"}]}, False),
        ({"conditions": [CONDITION, CONDITION | {"type": "Complete"}]}, False),
        ({"phase": "Running"}, False),
        ({"attempt": 2}, False),
        ({"observedGeneration": 2}, False),
        ({"lastCommit": {"name": "a", "step": 1}}, False),
    ],
)
def test_what_waits(change, waits):
    assert only_counts(OLD, OLD | change) is waits


def test_nothing_has_waited_for_another_jobs_time(clock):
    throttle = StatusThrottle(5.0, clock)
    assert throttle.left("a", OLD, OLD | {"message": "b"}) == 5.0
    clock.now = 3.0
    assert throttle.left("b", OLD, OLD | {"message": "b"}) == 5.0
    assert throttle.left("a", OLD, OLD | {"phase": "Running"}) == 0.0
    assert throttle.left("a", OLD, OLD | {"message": "c"}) == 5.0
    throttle.forget("a")
    clock.now = 4.0
    assert throttle.left("a", OLD, OLD | {"message": "c"}) == 5.0
