"""A job can be deleted whatever its spec and status hold: written by another version, by hand, or by a mistake."""

import asyncio
import copy
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, generate_latest
from rljob_api.contract import labels
from rljob_operator.controller.controller import Controller
from rljob_operator.controller.plan import plan
from rljob_operator.kube.objects import Obj, rfc3339
from rljob_operator.metrics import Metrics
from rljob_operator.settings import Settings
from rljob_operator.state.observe import Observed

from tests.conftest import NAMESPACE, FakeKube, World, job_manifest
from tests.test_lifecycle import start

ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers(-1, 3) | st.sampled_from(["", "Running", "Thawing"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                [
                    "attempt",
                    "attempts",
                    "state",
                    "number",
                    "conditions",
                    "type",
                    "status",
                    "phase",
                    "lifecycle",
                    "queue",
                ]
            ),
            inner,
            max_size=4,
        )
    ),
    max_leaves=12,
)
THAWING = {"attempt": 1, "attempts": [{"number": 1, "rayJob": "demo-1", "state": "Thawing"}]}


def started() -> dict[tuple[str, str], Obj]:
    """What there is of a job that trains."""
    world = World(job_manifest())
    asyncio.run(start(world))
    return world.kube.objects


@pytest.fixture(scope="module")
def objects() -> dict[tuple[str, str], Obj]:
    return started()


def deleted(status: Any, spec: Any) -> Obj:
    job = job_manifest() | {"status": status, "spec": spec}
    job["metadata"] |= {
        "uid": "u", "resourceVersion": "5", "finalizers": [labels.FINALIZER],
        "deletionTimestamp": rfc3339(FakeKube().now),
    }  # fmt: skip
    return job


def end(objects: dict[tuple[str, str], Obj], status: Any, spec: Any, **changed: Any) -> tuple[World, Metrics]:
    """Delete a job that trains, with this in place of its status and spec, and have the operator do its part."""
    world, metrics = World(), Metrics(CollectorRegistry())
    world.name, world.kube.objects, world.kube.version = "demo", copy.deepcopy(objects), 10**6
    job = world.get("RLJob", "demo")
    for field, value in {"status": status, "spec": spec}.items():
        job[field] = value
    controller = Controller(world.kube, Settings(**changed), metrics, world.kube)

    async def look() -> None:
        for _ in range(4):
            await controller._handle((NAMESPACE, "demo"))

    world.delete()
    asyncio.run(look())
    assert world.has("RLJob", "demo"), "its pods are still there"
    assert world.names("RayJob") == world.names("Deployment") == []
    world.collect()
    asyncio.run(look())
    return world, metrics


@given(ANYTHING, ANYTHING)
def test_a_plan_lets_it_go(status: Any, spec: Any) -> None:
    observed = Observed(deleted(status, spec))
    assert plan(observed, FakeKube().now, Settings()).finalizer == "remove"


def test_an_attempt_in_an_unknown_state_does_not_hold_it(objects: dict[tuple[str, str], Obj]) -> None:
    world, _ = end(objects, THAWING, job_manifest()["spec"])
    assert not world.has("RLJob", "demo")


@settings(max_examples=40)
@given(ANYTHING, ANYTHING, st.booleans())
def test_its_pods_go_and_then_it_goes(objects: dict[tuple[str, str], Obj], status: Any, spec: Any, kueue: bool) -> None:
    world, metrics = end(objects, status, spec, kueue=kueue)
    assert not world.has("RLJob", "demo")
    generate_latest(metrics.registry)


@given(ANYTHING)
def test_metrics_take_what_they_can_read(status: Any) -> None:
    metrics = Metrics(CollectorRegistry())
    metrics.job(("n", "j"), status)
    metrics.job(("n", "k"), {"phase": "Running", "conditions": [{"type": "Stalled", "status": "True"}]})
    text = generate_latest(metrics.registry).decode()
    assert 'rljob_job_condition{condition="Stalled",job_name="k",job_namespace="n"} 1.0' in text
    metrics.job(("n", "j"), None)
    assert metrics.registry.get_sample_value("rljob_operator_jobs", {"phase": "Pending"}) == 0
