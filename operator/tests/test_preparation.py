"""The claim is filled before the retriever and the trainer run: by a Job, once, told of in the status."""

import json

import pytest
from rljob_api.contract import names

from tests.conftest import World, job_manifest


@pytest.fixture
def preparing(world):
    world.kube.jobs_complete = False
    return world


def the_job(world):
    (name,) = world.names("Job")
    return world.get("Job", name)


def ends(world, kind, reason=""):
    the_job(world)["status"] = {"conditions": [{"type": kind, "status": "True", "reason": reason, "message": "why"}]}


def pod(world, code, said):
    """The Job's pod, whose first step ended."""
    template = the_job(world)["spec"]["template"]
    end = {"terminated": {"exitCode": code, "message": said, "finishedAt": "2026-01-01T00:00:00Z"}}
    status = {"phase": "Failed", "initContainerStatuses": [{"name": "prepare", "state": end}]}
    world.pod("demo-prepare-x", template["metadata"]["labels"], **status)


def replicas(world):
    name = names.retriever("demo")
    return world.get("Deployment", name)["spec"]["replicas"] if world.has("Deployment", name) else 0


async def test_nothing_else_runs_until_the_claim_is_filled(preparing):
    await preparing.settle()
    assert preparing.names("Job")
    assert replicas(preparing) == 0
    assert not preparing.names("RayJob")
    assert preparing.condition("ClusterReady")["reason"] == "WaitingForRetriever"
    ends(preparing, "Complete")
    await preparing.settle()
    assert replicas(preparing) == 1
    assert the_job(preparing)["spec"]["ttlSecondsAfterFinished"] == 3600, "its logs are there for a while"
    del preparing.kube.objects["Job", preparing.names("Job")[0]]
    await preparing.settle()
    assert preparing.names("Job") == [], "it is not made again"
    preparing.retriever_ready()
    await preparing.settle()
    assert preparing.names("RayJob") == ["demo-1"]


async def test_what_is_filled_is_not_filled_again(world):
    await world.settle()
    world.change(lifecycle={"suspend": True})
    await world.settle()
    assert replicas(world) == 0
    before = len(world.kube.writes)
    world.change(lifecycle={"suspend": False})
    await world.settle()
    assert replicas(world) == 1
    assert not [write for write in world.kube.writes[before:] if "Job/" in write and "RLJob" not in write]


async def test_another_content_is_another_job(preparing):
    await preparing.settle()
    first = preparing.names("Job")
    preparing.change(data={"prepare": {"function": "rljob_trainer.quickstart.world:prepare", "args": {"seed": 8}}})
    await preparing.settle()
    assert len(preparing.names("Job")) == 1
    assert preparing.names("Job") != first


async def test_the_status_says_how_far_it_is(preparing):
    await preparing.settle()
    config_map = preparing.get("ConfigMap", names.progress("demo"))
    report = {"stage": "index", "percent": 20, "amount": "12.0 of 60.0 GiB"}
    config_map.setdefault("data", {})["preparation.json"] = json.dumps(report)
    pod_status = {"phase": "Running", "containerStatuses": [{"name": "build-index", "state": {"running": {}}}]}
    preparing.pod("demo-prepare-x", the_job(preparing)["spec"]["template"]["metadata"]["labels"], **pod_status)
    await preparing.settle()
    found = preparing.status["preparation"]
    assert (found["state"], found["percent"], found["amount"]) == ("Running", 20, "12.0 of 60.0 GiB")
    assert preparing.status["phase"] == "Preparing"
    assert preparing.status["message"] == "preparing: index, 20 % (12.0 of 60.0 GiB)"


@pytest.mark.parametrize("text", ["{", '{"percent": 4000}', '{"stage": 7}'])
async def test_a_report_that_cannot_be_read_stops_nothing(preparing, text):
    await preparing.settle()
    preparing.get("ConfigMap", names.progress("demo")).setdefault("data", {})["preparation.json"] = text
    await preparing.settle()
    ends(preparing, "Complete")
    await preparing.settle()
    assert replicas(preparing) == 1


async def test_a_mistake_of_the_user_ends_the_job_in_the_steps_own_words(preparing):
    await preparing.settle()
    pod(preparing, 2, "error: spec.data.prepare: no such module")
    ends(preparing, "Failed", "PodFailurePolicy")
    await preparing.settle()
    failed = preparing.condition("Failed")
    assert (failed["status"], failed["reason"]) == ("True", "UserError")
    assert "container prepare (exit 2): error: spec.data.prepare: no such module" in failed["message"]
    writes = len(preparing.kube.writes)
    await preparing.settle()
    assert len(preparing.kube.writes) == writes
    assert the_job(preparing), "its pod's log is there"


async def test_after_the_last_try_the_job_fails(preparing):
    await preparing.settle()
    pod(preparing, 137, "Killed")
    ends(preparing, "Failed", "BackoffLimitExceeded")
    await preparing.settle()
    failed = preparing.condition("Failed")
    assert (failed["status"], failed["reason"]) == ("True", "BackoffLimitExceeded")
    assert "preparing failed 6 times" in failed["message"]


async def test_suspended_while_it_prepares_it_holds_no_pods_and_goes_on_later(preparing):
    await preparing.settle()
    preparing.change(lifecycle={"suspend": True})
    await preparing.settle()
    assert preparing.names("Job") == []
    assert preparing.status["phase"] == "Suspended"
    preparing.change(lifecycle={"suspend": False})
    await preparing.settle()
    assert preparing.names("Job")


async def test_deleted_while_it_prepares_nothing_is_left(preparing):
    await preparing.settle()
    preparing.delete()
    await preparing.settle()
    assert not preparing.names("Job")
    assert not preparing.has("RLJob", "demo")


async def test_with_nothing_to_prepare_there_is_no_job():
    manifest = job_manifest()
    del manifest["spec"]["data"]["prepare"]
    manifest["spec"]["retriever"]["index"]["build"] = "Never"
    world = World(manifest)
    world.kube.jobs_complete = False
    await world.settle()
    assert not world.names("Job")
    assert world.get("Deployment", names.retriever("demo"))["spec"]["replicas"] == 1


async def test_a_job_from_before_that_runs_already_keeps_its_retriever(world):
    await world.settle()
    world.retriever_ready()
    await world.settle()
    world.kube.objects["RLJob", "demo"]["status"].pop("preparation")  # an operator of a version that had none
    del world.kube.objects["Job", world.names("Job")[0]]
    await world.settle()
    assert replicas(world) == 1
    assert not world.names("Job")
