"""A job is suspended, resumed and deleted, at any moment."""

import json

import pytest
from rljob_operator.kube.objects import rfc3339

from tests.test_lifecycle import start


class TestSuspend:
    async def test_commit_then_release_then_resume(self, world):
        await start(world)
        world.change(lifecycle={"suspend": True})
        await world.settle()
        request = json.loads(world.get("ConfigMap", "demo-control")["data"]["request.json"])
        assert request["suspend"] is True
        assert request["attempt"] == 1
        assert world.status["phase"] == "Suspending"
        assert world.has("RayJob", "demo-1"), "the driver is committing"

        commit = {"name": "0001-ab/commits/step-000004", "step": 4}
        world.report(step=4, lastCommit=commit, state="Suspended", exitCode=4)
        await world.settle()
        assert world.status["phase"] == "Suspending", "pods are still there"
        world.collect()
        await world.settle()
        assert world.status["phase"] == "Suspended"
        assert world.condition("Suspended")["status"] == "True"
        assert world.get("Deployment", "demo-retriever")["spec"]["replicas"] == 0

        world.change(lifecycle={"suspend": False})
        await world.settle()
        world.retriever_ready()
        await world.settle()
        world.running(2, step=4)
        await world.settle()
        assert world.status["phase"] == "Running"
        assert world.status["failedAttempts"] == 0
        assert world.status["attempts"][-1]["startStep"] == 4
        request = json.loads(world.get("ConfigMap", "demo-control")["data"]["request.json"])
        assert request["suspend"] is False
        assert request["attempt"] == 2
        assert world.condition("Suspended")["reason"] == "Resumed"

    async def test_commit_that_does_not_come_is_not_waited_for_for_ever(self, world):
        await start(world)
        world.change(lifecycle={"suspend": True, "suspendTimeoutSeconds": 30})
        await world.settle()
        assert await world.reconcile() == pytest.approx(31, abs=1)
        world.later(31)
        await world.settle()
        world.collect()
        await world.settle()
        assert world.status["phase"] == "Suspended"
        assert "did not commit within 30 s" in world.status["attempts"][0]["message"]

    async def test_before_anything_runs(self, make_world, manifest):
        world = make_world(manifest(lifecycle={"suspend": True}))
        await world.settle()
        assert world.status["phase"] == "Suspended"
        assert not world.has("Deployment", "demo-retriever")
        assert world.status["attempt"] == 0

    async def test_before_the_driver_started(self, world):
        await world.settle()
        world.retriever_ready()
        await world.settle()
        world.change(lifecycle={"suspend": True})
        await world.settle()
        assert world.status["phase"] == "Suspended"
        assert world.names("RayJob") == []

    @pytest.mark.parametrize("drained", [False, True])
    async def test_a_trainer_pod_that_is_taken_away_has_the_driver_commit(self, world, drained):
        await start(world)
        pod = next(pod for (kind, name), pod in world.kube.objects.items() if kind == "Pod" and "-trainer-" in name)
        pod["metadata"]["deletionTimestamp"] = rfc3339(world.kube.now)
        if drained:
            said = {"type": "DisruptionTarget", "status": "True", "reason": "EvictionByEvictionAPI", "message": "drain"}
            pod["status"]["conditions"].append(said)
        await world.settle()
        request = json.loads(world.get("ConfigMap", "demo-control")["data"]["request.json"])
        assert (request["suspend"], request["attempt"]) == (True, 1)
        assert world.status["phase"] == "Running", "nobody wants the job suspended"

        commit = {"name": "0001-ab/commits/step-000003", "step": 3}
        world.report(state="Suspended", exitCode=4, lastCommit=commit, message="suspended as asked")
        await world.settle()
        (attempt,) = world.status["attempts"]
        assert (attempt["state"], attempt["reason"]) == ("Suspended", "Evicted" if drained else "Suspended")
        assert pod["metadata"]["name"] in attempt["message"]
        assert (attempt["endStep"], attempt["committedStep"]) == (3, 3)
        world.collect()
        await world.settle()
        assert (world.names("RayJob"), world.status["failedAttempts"]) == (["demo-2"], 0)
        request = json.loads(world.get("ConfigMap", "demo-control")["data"]["request.json"])
        assert (request["suspend"], request["attempt"]) == (False, 2)

    @pytest.mark.parametrize("group", ["rollout", "head"])
    async def test_other_pods_do_not(self, world, group):
        """An engine is replaced; a head asks its driver itself."""
        await start(world)
        pod = next(pod for (kind, name), pod in world.kube.objects.items() if kind == "Pod" and f"-{group}-" in name)
        pod["metadata"]["deletionTimestamp"] = rfc3339(world.kube.now)
        await world.settle()
        assert json.loads(world.get("ConfigMap", "demo-control")["data"]["request.json"])["suspend"] is False

    async def test_driver_that_was_preempted_after_a_commit_goes_on(self, world):
        await start(world)
        world.report(state="Suspended", exitCode=4, lastCommit={"name": "0001-ab/commits/step-000003", "step": 3})
        await world.settle()
        world.collect()
        await world.settle()
        assert world.names("RayJob") == ["demo-2"]
        assert world.status["failedAttempts"] == 0


class TestDelete:
    async def test_pods_go_before_the_finalizer(self, world):
        await start(world)
        world.delete()
        await world.settle()
        assert world.names("RayJob") == world.names("Deployment") == []
        assert world.has("RLJob", "demo"), "pods are still there"
        world.collect()
        await world.settle()
        assert not world.has("RLJob", "demo")

    async def test_is_bounded(self, world):
        await start(world)
        world.delete()
        await world.settle()
        world.later(301)
        await world.settle()
        assert not world.has("RLJob", "demo")
        assert "CleanupTimeout" in world.event_reasons

    async def test_of_a_refused_job_is_immediate(self, make_world, manifest):
        world = make_world(manifest(trainer={"backend": "megatron"}))
        await world.settle()
        world.delete()
        assert not world.has("RLJob", "demo")
