"""What other guides answer with `rm -rf` and `lsof`: named in a condition, told in an Event, and recovered from."""

import pytest

from tests.test_health import start


def crashing(world, said, exit_code=1, role="retriever"):
    world.pod(
        "demo-retriever-x",
        world.get("Deployment", "demo-retriever")["spec"]["template"]["metadata"]["labels"],
        phase="Running",
        containerStatuses=[
            {
                "name": role,
                "image": "registry/trainer:1",
                "state": {"waiting": {"reason": "CrashLoopBackOff", "message": "back-off"}},
                "lastState": {"terminated": {"exitCode": exit_code, "message": said}},
            }
        ],
    )


async def test_a_wrong_environment_names_the_package_and_the_image(world):
    await world.settle()
    crashing(world, "Traceback …\nModuleNotFoundError: No module named 'faiss'")
    await world.settle()
    found = world.condition("RetrieverReady")
    assert found["reason"] == "WrongEnvironment"
    assert (
        "the image registry/trainer:1 lacks the Python package 'faiss'; name another in spec.images" in found["message"]
    )
    assert world.event_reasons.count("WrongEnvironment") == 1
    # With the right image the Deployment's pods come up, and the job goes on by itself.
    del world.kube.objects["Pod", "demo-retriever-x"]
    world.retriever_ready()
    await world.settle()
    assert world.names("RayJob") == ["demo-1"]


async def test_a_port_that_is_taken_is_named(world):
    await world.settle()
    crashing(world, "OSError: [Errno 98] address already in use ('0.0.0.0', 8000)")
    await world.settle()
    assert world.condition("RetrieverReady")["reason"] == "PortTaken"
    assert "address already in use" in world.condition("RetrieverReady")["message"]
    assert "PortTaken" in world.event_reasons


async def test_an_image_that_cannot_be_pulled_is_named_for_the_retriever_too(world):
    await world.settle()
    world.pod(
        "demo-retriever-x", world.get("Deployment", "demo-retriever")["spec"]["template"]["metadata"]["labels"],
        phase="Pending", containerStatuses=[
            {"name": "retriever", "state": {"waiting": {"reason": "ImagePullBackOff", "message": "no such image x:1"}}}
        ],
    )  # fmt: skip
    await world.settle()
    assert world.condition("RetrieverReady")["reason"] == "ImagePullFailed"


async def test_a_silent_retriever_is_named_restarted_by_its_probe_and_training_goes_on(world):
    await start(world)
    deployment = world.get("Deployment", "demo-retriever")
    probe = deployment["spec"]["template"]["spec"]["containers"][0]["livenessProbe"]
    assert probe["httpGet"]["path"] == "/healthz"
    deployment["status"]["readyReplicas"] = 0
    running = {"running": {"startedAt": "2026-01-01T00:00:05Z"}}
    status = {"name": "retriever", "started": True, "ready": False, "restartCount": 1, "state": running}
    unready = {"type": "Ready", "status": "False", "lastTransitionTime": "2026-01-01T00:00:00Z"}
    pod = world.pod(
        "demo-retriever-x", deployment["spec"]["template"]["metadata"]["labels"], phase="Running",
        conditions=[unready], containerStatuses=[status],
    )  # fmt: skip
    await world.settle()
    assert world.condition("RetrieverReady")["reason"] == "RetrieverStarting", "it has just started, and is not silent"
    pod["status"]["conditions"] = [unready | {"lastTransitionTime": "2026-01-01T00:09:00Z"}]
    await world.settle()
    found = world.condition("RetrieverReady")
    assert (found["status"], found["reason"]) == ("False", "RetrieverSilent")
    assert (
        "pod demo-retriever-x runs and does not answer; its liveness probe restarts it (1 so far)" in found["message"]
    )
    assert world.event_reasons.count("RetrieverSilent") == 1
    assert world.status["phase"] == "Running"
    del world.kube.objects["Pod", "demo-retriever-x"]
    world.retriever_ready()
    await world.settle()
    assert world.condition("RetrieverReady")["status"] == "True"


async def silent(world, seconds):
    await start(world, heartbeatSeconds=30, time="2031-01-01T00:00:00Z")  # a clock that is years ahead
    world.later(seconds)
    await world.settle()


async def test_a_silent_driver_is_named_and_then_its_attempt_is_ended_and_retried(world):
    await silent(world, 100)
    assert world.condition("Stalled")["reason"] == "DriverSilent"
    assert "the driver has not reported for more than 90 s" in world.condition("Stalled")["message"]
    assert "DriverSilent" in world.event_reasons
    assert world.status["phase"] == "Running"
    world.later(510)
    await world.settle()
    assert world.status["phase"] == "Retrying"
    assert world.status["attempts"][0]["reason"] == "WorkerStuck"
    assert "the driver has not reported for 610 s" in world.status["attempts"][0]["message"]
    world.collect()
    world.later(60)
    await world.settle()
    assert world.names("RayJob") == ["demo-2"]


async def test_a_driver_that_reports_again_is_not_taken_for_silent(world):
    await silent(world, 100)
    world.report(time="2031-01-01T00:02:00Z")
    await world.settle()
    assert world.condition("Stalled")["reason"] == "Progressing"
    assert await world.reconcile() == pytest.approx(91.0)


async def test_a_driver_of_an_older_version_promises_nothing(world):
    await start(world, time="2026-01-01T00:00:00Z")
    world.later(7200)
    await world.settle()
    assert world.status["phase"] == "Running"
    assert not world.condition("Stalled")
