"""The retriever's own scaling: an autoscaler that is let alone, and a budget for disruptions of several pods."""

from typing import Any

import pytest

from tests.conftest import World, job_manifest

NAME = "demo-retriever"


def scaled(make_world: Any, **retriever: Any) -> World:
    manifest = job_manifest()
    manifest["spec"]["retriever"] |= retriever
    world: World = make_world(manifest)
    return world


async def test_the_number_of_pods_is_the_autoscalers(make_world):
    world = scaled(make_world, autoscaling={"minReplicas": 2, "maxReplicas": 6})
    await world.settle()
    world.retriever_ready()
    await world.settle()
    spec = world.get("HorizontalPodAutoscaler", NAME)["spec"]
    assert (spec["minReplicas"], spec["maxReplicas"]) == (2, 6)
    assert spec["scaleTargetRef"] == {"apiVersion": "apps/v1", "kind": "Deployment", "name": NAME}

    world.get("Deployment", NAME)["spec"]["replicas"] = 5
    world.retriever_ready()
    writes = len(world.kube.writes)
    await world.settle()
    assert world.get("Deployment", NAME)["spec"]["replicas"] == 5
    assert world.status["retriever"] == {"desired": 5, "ready": 5}
    assert all("Deployment" not in str(write) for write in world.kube.writes[writes:])


async def test_a_finished_job_has_no_retriever_pods_whatever_the_autoscaler_said(make_world):
    world = scaled(make_world, autoscaling={"maxReplicas": 6})
    await world.settle()
    world.retriever_ready()
    await world.settle()
    world.get("Deployment", NAME)["spec"]["replicas"] = 5
    world.change(lifecycle={"suspend": True})
    for _ in range(3):
        await world.settle()
        world.collect()
    assert world.status["phase"] == "Suspended"
    assert world.get("Deployment", NAME)["spec"]["replicas"] == 0


@pytest.mark.parametrize(
    ("retriever", "guarded"),
    [({}, False), ({"replicas": 2}, True), ({"autoscaling": {"maxReplicas": 1}}, False),
     ({"autoscaling": {"maxReplicas": 2}}, True)],
)  # fmt: skip
async def test_a_drain_takes_one_pod_after_the_other(make_world, retriever, guarded):
    world = scaled(make_world, **retriever)
    await world.settle()
    assert world.has("PodDisruptionBudget", NAME) is guarded


async def test_what_is_no_longer_asked_for_goes(make_world):
    world = scaled(make_world, autoscaling={"maxReplicas": 6})
    await world.settle()
    assert world.has("HorizontalPodAutoscaler", NAME)
    world.change(retriever={"autoscaling": None, "replicas": 1})
    await world.settle()
    assert not world.has("HorizontalPodAutoscaler", NAME)
    assert not world.has("PodDisruptionBudget", NAME)
    assert world.get("Deployment", NAME)["spec"]["replicas"] == 1
