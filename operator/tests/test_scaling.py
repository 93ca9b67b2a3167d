"""The rollout group grows and shrinks while the job trains, by the user's hand and by autoscaling."""

import json
from datetime import UTC, datetime, timedelta

import pytest
from rljob_api.v1alpha1.rollout import Autoscaling
from rljob_operator.policies.autoscaling import decide, recommend

from tests.test_lifecycle import start

PODS = [f"demo-1-abcde-rollout-{index}" for index in range(3)]


def request_of(world):
    return json.loads(world.get("ConfigMap", "demo-control")["data"]["request.json"])


def group(world, attempt=1):
    groups = world.get("RayCluster", f"demo-{attempt}-abcde")["spec"]["workerGroupSpecs"]
    return next(g for g in groups if g["groupName"] == "rollout")


@pytest.fixture
async def three(make_world, manifest):
    """A job that trains with three engines, each on a pod of its own."""
    rollout = manifest()["spec"]["rollout"] | {"replicas": 3}
    world = make_world(manifest(rollout=rollout))
    await start(world, engines={"serving": PODS, "drained": []})
    return world


async def test_more_pods_are_asked_for_at_once(three):
    three.change(rollout={"replicas": 5})
    await three.settle()
    assert group(three)["replicas"] == 5
    assert "scaleStrategy" not in group(three)
    assert (request_of(three)["engines"], request_of(three)["drain"]) == (5, [])
    assert "RolloutScaling" in three.event_reasons
    assert three.condition("RolloutScaled")["status"] == "True"


async def test_pods_go_only_after_the_driver_has_drained_them(three):
    three.change(rollout={"replicas": 1})
    await three.settle()
    asked = request_of(three)
    assert asked["engines"] == 1
    assert len(asked["drain"]) == 2
    assert group(three)["replicas"] == 3, "they still have work"
    assert three.condition("RolloutScaled")["reason"] == "RolloutScaling"
    assert "waiting until" in three.condition("RolloutScaled")["message"]

    one, other = asked["drain"]
    three.report(engines={"serving": [p for p in PODS if p != one], "drained": [one]})
    await three.settle()
    assert group(three)["replicas"] == 3, "one of two is not enough"
    assert request_of(three)["drain"] == [one, other], "the choice stays"

    three.report(engines={"serving": [p for p in PODS if p not in (one, other)], "drained": [one, other]})
    await three.settle()
    assert group(three)["replicas"] == 1
    assert group(three)["scaleStrategy"] == {"workersToDelete": [one, other]}
    assert request_of(three)["drain"] == []
    assert three.condition("RolloutScaled")["message"] == "1 pods as asked"
    assert three.get("RayJob", "demo-1")["metadata"]["generation"] == 1


async def test_pods_that_serve_nothing_go_first(three):
    three.get("Pod", PODS[1])["status"]["conditions"][0]["status"] = "False"
    three.report(engines={"serving": [PODS[0]], "drained": []})
    three.change(rollout={"replicas": 1})
    await three.settle()
    assert request_of(three)["drain"] == [PODS[1], PODS[2]]


async def test_a_driver_that_does_not_drain_is_not_waited_for_for_ever(three):
    three.change(rollout={"replicas": 2})
    await three.settle()
    assert await three.reconcile() == pytest.approx(901)
    three.later(901)
    await three.settle()
    assert group(three)["replicas"] == 2


async def test_a_change_of_mind_takes_the_wish_back(three):
    three.change(rollout={"replicas": 1})
    await three.settle()
    three.change(rollout={"replicas": 3})
    await three.settle()
    assert (request_of(three)["engines"], request_of(three)["drain"]) == (3, [])
    assert group(three)["replicas"] == 3


async def test_the_number_holds_after_a_retry(three):
    three.change(rollout={"replicas": 5})
    await three.settle()
    three.report(state="Failed", exitCode=1, message="x")
    await three.settle()
    three.collect()
    three.later(10)
    await three.settle()
    assert three.names("RayJob") == ["demo-2"]
    groups = three.get("RayJob", "demo-2")["spec"]["rayClusterSpec"]["workerGroupSpecs"]
    assert [g["replicas"] for g in groups if g["groupName"] == "rollout"] == [5]
    assert request_of(three)["engines"] == 5


POLICY = Autoscaling(min_replicas=1, max_replicas=8, target_trainer_wait=0.5)
NOW = datetime(2026, 1, 1, tzinfo=UTC)


@pytest.mark.parametrize(
    ("current", "wait", "ahead", "expected"),
    [
        (2, 0.5, False, 2), (2, None, False, 2), (2, 0.53, False, 2),  # met, unknown, near enough
        (2, 0.6, False, 3), (2, 0.9, False, 4), (2, 0.999, False, 4),  # waits: more, at most doubled
        (4, 0.4, False, 3), (8, 0.1, False, 4), (8, 0.0, False, 4),  # hardly waits: fewer, at most halved
        (1, 0.1, False, 1), (8, 0.9, False, 8), (6, 0.9, False, 8),  # the bounds
        (4, 0.9, True, 4), (8, 0.1, True, 4),  # samples lie about as long as they may: no more engines
    ],
)  # fmt: skip
def test_recommended_number(current, wait, ahead, expected):
    assert recommend(POLICY, current, wait, ahead=ahead) == expected


def test_a_recommendation_must_last_for_its_window():
    state = decide(POLICY, None, 2, 0.9, NOW, ahead=False)
    assert (state.replicas, state.recommended) == (2, 4)
    state = decide(POLICY, state, 2, 0.6, NOW + timedelta(seconds=59), ahead=False)
    assert (state.replicas, state.recommended) == (2, 3), "of the window's the nearest"
    state = decide(POLICY, state, 2, 0.9, NOW + timedelta(seconds=60), ahead=False)
    assert (state.replicas, state.recommended) == (3, None)
    state = decide(POLICY, state, 2, 0.1, NOW + timedelta(seconds=70), ahead=False)
    assert (state.replicas, state.recommended) == (3, 2)
    state = decide(POLICY, state, 2, 0.5, NOW + timedelta(seconds=300), ahead=False)
    assert (state.replicas, state.recommended) == (3, None), "a break begins the window anew"


async def test_autoscaling_scales_the_group_and_says_so(make_world, manifest):
    rollout = manifest()["spec"]["rollout"] | {"replicas": 1, "autoscaling": {"maxReplicas": 4}}
    world = make_world(manifest(rollout=rollout))
    await start(world, engines={"serving": PODS[:1], "drained": []}, trainerWait=0.9)
    assert world.status["autoscaling"]["recommended"] == 2
    assert group(world)["replicas"] == 1
    world.later(61)
    world.report(trainerWait=0.9, time="2026-01-01T00:01:01Z")
    await world.settle()
    assert group(world)["replicas"] == 2
    assert world.status["autoscaling"]["replicas"] == 2
    assert world.kube.objects["RLJob", "demo"]["spec"]["rollout"]["replicas"] == 1, "the spec is the user's"


async def scaled_async(make_world, manifest, max_staleness=2):
    """A job whose engines run ahead of the trainer, with two of at most eight engines."""
    rollout = manifest()["spec"]["rollout"] | {"replicas": 2, "autoscaling": {"maxReplicas": 8}}
    world = make_world(manifest(rollout=rollout, placement={"type": "async", "maxStaleness": max_staleness}))
    await start(world, engines={"serving": PODS[:2], "drained": []})
    return world


@pytest.mark.parametrize(
    ("said", "recommended"),
    [
        ({"trainerWait": 0.9, "stalenessMax": 1.0}, 4),
        ({"trainerWait": 0.9}, 4),  # nothing is known of the samples' age
        ({"trainerWait": 0.9, "stalenessMax": 2.0}, None),  # engines wait for the trainer: more would wait as well
        ({"trainerWait": 0.9, "stalenessMax": 3.0}, None),
        ({"trainerWait": 0.1, "stalenessMax": 2.0}, 1),  # fewer are enough whatever the age
        ({"trainerWait": 0.5, "stalenessMax": 0.0}, None),
        ({"stalenessMax": 0.0}, None),  # how long the trainer waits is not known
        ({"trainerWait": 0.9, "stalenessMax": 0.0, "stage": "SFT"}, None),  # no samples are waited for here
    ],
)  # fmt: skip
async def test_the_drivers_report_decides(make_world, manifest, said, recommended):
    world = await scaled_async(make_world, manifest)
    world.report(**said)
    await world.settle()
    assert world.status["autoscaling"].get("recommended") == recommended
    assert world.status["autoscaling"]["replicas"] == 2, "a recommendation must last first"


async def test_without_staleness_allowed_the_age_of_samples_says_nothing(make_world, manifest):
    world = await scaled_async(make_world, manifest, max_staleness=0)
    world.report(trainerWait=0.9, stalenessMax=0.0)
    await world.settle()
    assert world.status["autoscaling"]["recommended"] == 4


async def test_samples_that_grow_stale_end_the_wish_for_more_engines(make_world, manifest):
    world = await scaled_async(make_world, manifest)
    world.report(trainerWait=0.9, stalenessMax=1.0)
    await world.settle()
    assert world.status["autoscaling"]["recommended"] == 4
    world.later(59)
    world.report(stalenessMax=2.0, time="2026-01-01T00:00:59Z")
    await world.settle()
    world.later(2)
    world.report(stalenessMax=1.0, time="2026-01-01T00:01:01Z")
    await world.settle()
    assert group(world)["replicas"] == 2, "the window began anew"
    world.later(61)
    world.report(time="2026-01-01T00:02:02Z")
    await world.settle()
    assert group(world)["replicas"] == 4


@pytest.mark.parametrize(("asked", "begins"), [(1, 2), (3, 3), (9, 4)])
async def test_a_job_begins_with_the_engines_it_asks_for_within_the_bounds(make_world, manifest, asked, begins):
    scaling = {"minReplicas": 2, "maxReplicas": 4}
    rollout = manifest()["spec"]["rollout"] | {"replicas": asked, "autoscaling": scaling}
    world = make_world(manifest(rollout=rollout))
    await start(world)
    assert group(world)["replicas"] == begins
    assert world.status["autoscaling"]["replicas"] == begins
