"""A refused write is reported in the apiserver's words, retried with back-off, and stops nothing else."""

import json
from typing import Any

import pytest
from rljob_operator.kube.client import ApiError
from rljob_operator.kube.objects import rfc3339
from rljob_operator.state.refusals import LONGEST_SECONDS

from tests.conftest import World, job_manifest
from tests.test_lifecycle import start

QUOTA = 'persistentvolumeclaims "demo-data" is forbidden: exceeded quota: none, requested: persistentvolumeclaims=1'
CLAIM, DATA = "PersistentVolumeClaim", "demo-data"


def told(world: World) -> tuple[str, str, str]:
    condition = world.condition("ResourcesApplied")
    return condition["status"], condition["reason"], condition["message"]


def warnings(world: World) -> list[str]:
    return [event["message"] for event in world.kube.events if event["type"] == "Warning"]


def claim(world: World, size: str, capacity: str | None = None) -> None:
    """Somebody gives the claim another size."""
    live = world.get(CLAIM, DATA)
    live["spec"]["resources"]["requests"]["storage"] = size
    live["status"] = {"phase": "Bound", "capacity": {"storage": capacity or size}}


def asked(world: World) -> str:
    return str(world.get(CLAIM, DATA)["spec"]["resources"]["requests"]["storage"])


def request(world: World) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(world.get("ConfigMap", "demo-control")["data"]["request.json"])
    return found


async def finish(world: World, attempt: int = 1) -> None:
    world.report(step=10, stage="Done", state="Succeeded", exitCode=0)
    await world.settle()
    world.ray_job_ends(attempt, "Complete")
    await world.settle()


# A quota, a right, a webhook: others' work, and mended by others


@pytest.mark.parametrize("status", [403, 404, 405, 422])
async def test_a_refused_child_is_told_and_the_job_goes_on_by_itself_once_it_may(world, status):
    world.kube.refuse("apply", CLAIM, status, QUOTA)
    await world.settle()
    assert told(world) == ("False", "ChildRefused", f"the apiserver refuses {CLAIM} {DATA}: {QUOTA}")
    assert warnings(world) == [f"the apiserver refuses {CLAIM} {DATA}: {QUOTA}"], "said once"
    assert (world.status["phase"], world.status.get("attempt", 0)) == ("Pending", 0)
    assert QUOTA in world.status["message"]
    assert world.names("Job") == [], "nothing runs without the claim"
    assert world.has("Lease", "demo-driver"), "all else is there"

    world.later(3600)
    world.kube.refused.clear()
    await start(world)
    assert told(world)[:2] == ("True", "Applied")
    assert (world.status["phase"], world.status["failedAttempts"]) == ("Running", 0)


async def test_what_a_quota_refuses_is_accepted_all_the_same(world):
    world.kube.refuse("apply", CLAIM, 403, QUOTA)
    await world.settle()
    assert world.condition("Accepted")["status"] == "True"


@pytest.mark.parametrize("status", [400, 413, 422])
async def test_what_the_apiserver_finds_invalid_before_the_start_is_not_accepted(world, status):
    world.kube.refuse("apply", "Deployment", status, "spec.template.spec.tolerations[0].operator: Invalid value")
    await world.settle()
    accepted = world.condition("Accepted")
    assert (accepted["status"], accepted["reason"]) == ("False", "ChildRefused")
    assert "Deployment demo-retriever: spec.template.spec.tolerations[0].operator" in accepted["message"]
    assert len(warnings(world)) == 1
    world.kube.refused.clear()
    world.later(LONGEST_SECONDS)
    await world.settle()
    assert world.condition("Accepted")["status"] == "True"


async def test_it_is_tried_again_with_growing_distance_and_not_for_every_look(world):
    world.kube.refuse("apply", CLAIM, 403, QUOTA)
    tries, waits = [], []
    for _ in range(8):
        before = len(world.kube.tries)
        await world.settle()
        waits += [await world.reconcile() for _ in range(5)]  # progress, pods, a resync: each is a reason to look
        tries.append(len(world.kube.tries) - before)
        world.later(waits[-1])
    assert tries == [1] * 8
    assert waits[::5] == pytest.approx([5, 10, 20, 40, 60, 60, 60, 60])


async def test_what_the_user_corrects_is_tried_at_once(world):
    world.kube.refuse("apply", "ConfigMap", 403, "too large for the policy")
    await world.settle()
    before = len(world.kube.tries)
    world.change(lifecycle={"backoffLimit": 7})
    await world.reconcile()
    assert "apply ConfigMap/demo-config" in world.kube.tries[before:]
    assert "apply ConfigMap/demo-progress" not in world.kube.tries[before:], "as it was refused before"


async def test_words_are_told_anew_and_the_event_is_not_written_again(world):
    world.kube.refuse("apply", CLAIM, 403, QUOTA)
    await world.settle()
    world.kube.refuse("apply", CLAIM, 403, "the namespace is being audited")
    world.later(5)
    await world.settle()
    assert "being audited" in told(world)[2]
    assert len(warnings(world)) == 1


async def test_all_that_is_refused_is_told(world):
    world.kube.refuse("apply", CLAIM, 403, QUOTA)
    world.kube.refuse("apply", "Role", 403, "attempting to grant RBAC permissions not currently held")
    await world.settle()
    assert QUOTA in told(world)[2]
    assert "Role demo-driver: attempting to grant RBAC" in told(world)[2]


@pytest.mark.parametrize(
    "kind", ["ServiceAccount", "Role", "RoleBinding", CLAIM, "ConfigMap", "Lease", "NetworkPolicy", "Service"]
)
async def test_no_pods_without_what_they_need(world, kind):
    world.kube.refuse("apply", kind, 403, "no")
    for _ in range(4):
        await world.settle()
        world.later(LONGEST_SECONDS)
    assert (world.names("Job"), world.names("RayJob"), world.names("Deployment")) == ([], [], [])
    assert world.status.get("attempt", 0) == 0
    world.kube.refused.clear()
    await start(world)
    await finish(world)
    assert world.status["phase"] == "Succeeded"


@pytest.mark.parametrize("kind", ["HorizontalPodAutoscaler", "PodDisruptionBudget"])
async def test_a_job_runs_without_what_it_can_do_without(kind):
    retriever = job_manifest()["spec"]["retriever"] | {"autoscaling": {"minReplicas": 2, "maxReplicas": 4}}
    world = World(job_manifest(retriever=retriever))
    world.kube.refuse("apply", kind, 403, "no")
    await start(world)
    assert world.status["phase"] == "Running"
    assert kind in told(world)[2]


@pytest.mark.parametrize("spec", [{}, {"lifecycle": {"activeDeadlineSeconds": 3600}}])
async def test_a_ray_job_that_is_refused_costs_no_attempt_and_no_time(spec):
    manifest = job_manifest(**spec)
    del manifest["spec"]["retriever"]
    manifest["spec"]["rollout"].pop("generate")
    world = World(manifest, start_timeout_seconds=1800.0)
    world.kube.refuse("create", "RayJob", 403, "exceeded quota: gpus")
    await world.settle()
    assert (world.status["phase"], world.status["attempt"]) == ("Starting", 1)
    assert "exceeded quota: gpus" in world.status["message"]
    for _ in range(40):
        world.later(1000)
        await world.settle()
    assert (world.status["phase"], world.status["attempt"], world.status["failedAttempts"]) == ("Starting", 1, 0)
    world.kube.refused.clear()
    world.later(60)
    await world.settle()
    assert world.names("RayJob") == ["demo-1"]
    made = world.status["attempts"][0]["startTime"]
    assert made == world.get("RayJob", "demo-1")["metadata"]["creationTimestamp"] == rfc3339(world.kube.now)
    world.running()
    await world.settle()
    await finish(world)
    assert world.status["phase"] == "Succeeded"


async def test_an_attempt_without_its_ray_job_can_be_suspended_and_has_cost_no_time():
    manifest = job_manifest(lifecycle={"activeDeadlineSeconds": 3600})
    del manifest["spec"]["retriever"]
    manifest["spec"]["rollout"].pop("generate")
    world = World(manifest)
    world.kube.refuse("create", "RayJob", 403, "exceeded quota: gpus")
    await world.settle()
    world.later(100_000)
    world.change(lifecycle={"suspend": True})
    await world.settle()
    assert world.status["phase"] == "Suspended"
    assert told(world)[0] == "True", "it is not asked for any more"
    world.kube.refused.clear()
    world.change(lifecycle={"suspend": False})
    await world.settle()
    assert world.names("RayJob") == ["demo-2"]
    assert world.status["phase"] == "Starting"


async def test_a_preparation_that_is_refused_is_told(world):
    world.kube.refuse("create", "Job", 403, "exceeded quota: jobs")
    await world.settle()
    assert world.status["phase"] == "Pending"
    assert "exceeded quota: jobs" in world.status["message"]
    assert "preparation" not in world.status
    world.kube.refused.clear()
    world.later(LONGEST_SECONDS)
    await start(world)
    assert world.status["phase"] == "Running"


# A job that has begun


@pytest.mark.parametrize(
    ("verb", "kind"),
    [("apply", CLAIM), ("apply", "Role"), ("apply", "NetworkPolicy"), ("apply", "Deployment"), ("apply", "Lease")],
)
@pytest.mark.parametrize("status", [403, 422])
async def test_a_job_that_has_begun_goes_on_whatever_is_refused(world, verb, kind, status):
    await start(world)
    for (its, _), obj in world.kube.objects.items():
        if its == kind:
            obj["metadata"]["annotations"] = {}  # as after an upgrade: everything is applied anew
    world.kube.refuse(verb, kind, status, "denied by policy")
    world.report(step=7, lastCommit={"name": "0001-ab/commits/step-000006", "step": 6})
    await world.settle()
    assert (world.status["phase"], world.status["step"]) == ("Running", 7)
    assert told(world)[:2] == ("False", "ChildRefused")
    assert world.condition("Accepted")["status"] == "True", "an admin's policy is no mistake of the job's"

    world.change(lifecycle={"suspend": True})
    await world.settle()
    assert request(world)["suspend"] is True
    world.report(state="Suspended", exitCode=4)
    await world.settle()
    world.collect()
    await world.settle()
    assert (world.status["phase"], world.names("RayJob")) == ("Suspended", [])


async def test_a_job_finishes_while_a_child_is_refused(world):
    await start(world)
    world.get("Role", "demo-driver")["rules"] = []
    world.kube.refuse("apply", "Role", 403, "denied by policy")
    await finish(world)
    assert world.status["phase"] == "Succeeded"
    assert world.get("Deployment", "demo-retriever")["spec"]["replicas"] == 0


async def test_the_next_attempt_waits_for_what_it_needs_and_none_is_recorded(world):
    await start(world)
    world.kube.refuse("apply", "Lease", 403, "denied by policy")
    world.report(state="Failed", exitCode=1, message="rank 1 died")
    await world.settle()
    world.collect()
    for _ in range(5):
        world.later(LONGEST_SECONDS)
        await world.settle()
    assert (world.status["attempt"], world.names("RayJob")) == (1, [])
    assert "Lease demo-driver: denied by policy" in told(world)[2]
    world.kube.refused.clear()
    world.later(LONGEST_SECONDS)
    await world.settle()
    assert world.get("Lease", "demo-driver")["metadata"]["annotations"]["rljob.io/attempt"] == "2"
    assert world.names("RayJob") == ["demo-2"]
    assert told(world)[0] == "True"


async def test_a_deletion_that_is_refused_is_told_and_the_next_attempt_waits_for_it(world):
    await start(world)
    world.kube.refuse("delete", "RayJob", 403, "rayjobs may not be deleted on Fridays")
    world.report(state="Failed", exitCode=1, message="rank 1 died")
    await world.settle()
    assert world.status["phase"] == "Retrying"
    assert "to delete RayJob demo-1: rayjobs may not be deleted on Fridays" in told(world)[2]
    world.kube.refused.clear()
    world.later(LONGEST_SECONDS)
    await world.settle()
    world.collect()
    world.later(60)
    await world.settle()
    assert world.names("RayJob") == ["demo-2"]


async def test_a_scaling_that_is_refused_is_told(world):
    await start(world)
    world.kube.refuse("patch", "RayCluster", 403, "exceeded quota: pods")
    world.change(rollout={"replicas": 3})
    await world.settle()
    assert "to scale RayCluster demo-1-abcde: exceeded quota: pods" in told(world)[2]
    await finish(world)
    assert world.status["phase"] == "Succeeded"


async def test_a_name_that_is_taken_stops_no_job_that_has_begun(world):
    await start(world)
    world.kube.objects.pop(("ConfigMap", "demo-config"))
    world.kube.add({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "demo-config"}, "data": {"a": "b"}})
    world.report(step=8)
    await world.settle()
    assert (world.status["step"], world.condition("Accepted")["status"]) == (8, "True")
    assert told(world)[:2] == ("False", "NameConflict")
    assert world.get("ConfigMap", "demo-config")["data"] == {"a": "b"}
    await finish(world)
    assert world.status["phase"] == "Succeeded"


# What may be over in a moment


@pytest.mark.parametrize("status", [None, 409, 429, 500, 503])
async def test_what_fails_again_and_again_without_a_verdict_is_told_as_well(world, status):
    await start(world)
    world.get("Role", "demo-driver")["rules"] = []
    world.kube.refuse("apply", "Role", status, 'failed calling webhook "roles.example.org"')
    world.report(step=8)
    for _ in range(2):  # the queue tries again by its own back-off
        with pytest.raises(ApiError):
            await world.reconcile()
        assert world.status["step"] == 3
    await world.settle()
    assert world.status["step"] == 8
    assert "Role demo-driver could not be written so far: failed calling webhook" in told(world)[2]
    world.kube.refused.clear()
    world.later(LONGEST_SECONDS)
    await world.settle()
    assert told(world)[0] == "True"
    assert len(world.get("Role", "demo-driver")["rules"]) == 3


async def test_a_request_that_cannot_be_written_is_told_though_it_has_another_time_with_each_try(world):
    await start(world)
    world.kube.refuse("apply", "ConfigMap", 503, "no endpoints available for service")
    world.change(lifecycle={"suspend": True})
    for _ in range(2):
        with pytest.raises(ApiError):
            await world.reconcile()
        world.later(1)
    for _ in range(2):  # the other ConfigMap, with the spec in it
        with pytest.raises(ApiError):
            await world.reconcile()
        world.later(1)
    await world.settle()
    assert "ConfigMap demo-control could not be written so far" in told(world)[2]
    assert world.status["phase"] == "Suspending"
    world.kube.refused.clear()
    world.later(LONGEST_SECONDS)
    await world.settle()
    assert request(world)["suspend"] is True


async def test_a_failure_now_and_then_is_not_told(world):
    await start(world)
    for _ in range(6):
        world.get("Role", "demo-driver")["rules"] = []
        world.kube.refuse("apply", "Role", 500, "etcd leader changed")
        with pytest.raises(ApiError):
            await world.reconcile()
        world.kube.refused.clear()
        await world.settle()
    assert told(world)[0] == "True"
    assert warnings(world) == []


async def test_a_conflict_that_is_none_of_names_has_created_nothing(world):
    """Two that take from a quota at once: the apiserver answers 409 and there is no RayJob."""
    create = world.kube.create

    async def contended(obj):
        if obj["kind"] == "RayJob":
            raise ApiError("POST rayjobs", 409, 'Operation cannot be fulfilled on resourcequotas "q"', "Conflict")
        return await create(obj)

    await world.settle()
    world.retriever_ready()
    world.kube.create = contended
    await world.settle()
    assert "RayJob demo-1 could not be written so far: Operation cannot be fulfilled" in told(world)[2]
    world.kube.create = create
    world.later(await world.reconcile())
    await world.settle()
    assert world.names("RayJob") == ["demo-1"]


async def test_killed_after_every_write_while_something_is_refused():
    async def story(world: World) -> None:
        world.kube.refuse("apply", CLAIM, 403, QUOTA)
        await world.settle(200)
        world.kube.refused.clear()
        world.later(LONGEST_SECONDS)
        await world.settle(200)
        world.retriever_ready()
        world.kube.refuse("create", "RayJob", 403, "exceeded quota: gpus")
        await world.settle(200)
        world.kube.refused.clear()
        world.later(LONGEST_SECONDS)
        await world.settle(200)
        world.running()
        await world.settle(200)
        await finish(world)

    undisturbed, world = World(job_manifest()), World(job_manifest())
    await story(undisturbed)
    original, settle = world.kube._wrote, world.settle

    def dying(what: str) -> None:
        world.kube.die_after = len(world.kube.writes) + 1
        original(what)

    world.kube._wrote = dying
    world.settle = lambda limit=200: settle(limit)
    await story(world)
    assert (world.status["phase"], world.status["attempt"]) == ("Succeeded", 1)
    assert {c["type"]: c["status"] for c in world.status["conditions"]} == {
        c["type"]: c["status"] for c in undisturbed.status["conditions"]
    }


# The size of a claim


@pytest.mark.parametrize("size", ["20Gi", "10241Mi", "1e12", "11e9", "1Ti"])
async def test_a_claim_that_an_admin_has_expanded_stays_as_it_is(world, size):
    await start(world)
    claim(world, size)
    world.change(lifecycle={"suspend": True})
    await world.settle()
    assert asked(world) == size
    assert request(world)["suspend"] is True
    assert told(world)[0] == "True"
    world.change(lifecycle={"suspend": False})
    await world.settle()
    await finish(world)
    assert world.status["phase"] == "Succeeded"


@pytest.mark.parametrize("size", ["10Gi", "10240Mi", "10737418240"])
async def test_the_same_size_in_other_units_is_no_reason_to_write(world, size):
    await start(world)
    claim(world, size)
    writes = len(world.kube.writes)
    await world.settle()
    assert world.kube.writes[writes:] == []


@pytest.mark.parametrize(
    ("live", "capacity", "wanted", "then"),
    [
        ("10Gi", "10Gi", "30Gi", "30Gi"),
        ("20Gi", "20Gi", "30Gi", "30Gi"),
        ("50Gi", "50Gi", "30Gi", "50Gi"),
        ("10Gi", "100Gi", "30Gi", "10Gi"),  # of a volume that is large enough nothing is asked
        ("50Gi", "10Gi", "30Gi", "50Gi"),  # an expansion that is under way
        ("10Gi", "10Gi", "10240Mi", "10Gi"),
    ],
)
async def test_a_claim_grows_with_the_spec(world, live, capacity, wanted, then):
    await start(world)
    claim(world, live, capacity)
    world.change(storage={"size": wanted})
    await world.settle()
    assert asked(world) == then
    assert told(world)[0] == "True"
    writes = len(world.kube.writes)
    await world.settle()
    assert world.kube.writes[writes:] == []


async def test_the_retrievers_claim_grows_too():
    spec = job_manifest()["spec"]["retriever"] | {
        "corpus": "/rljob-retriever/c.jsonl", "storage": {"size": "10Gi"},
    }  # fmt: skip
    world = World(job_manifest(retriever=spec))
    await start(world)
    world.change(retriever={"storage": {"size": "30Gi"}})
    await world.settle()
    live = world.get(CLAIM, "demo-retriever")
    assert live["spec"]["resources"]["requests"]["storage"] == "30Gi"


async def test_a_growth_that_the_class_refuses_is_told_and_the_job_goes_on_even_into_its_next_attempt(world):
    await start(world)
    world.kube.refuse("apply", CLAIM, 403, "only dynamically provisioned pvc can be resized")
    world.change(storage={"size": "30Gi"})
    world.report(state="Failed", exitCode=1, message="no space left")
    await world.settle()
    assert "only dynamically provisioned pvc can be resized" in told(world)[2]
    world.collect()
    world.later(10)
    await world.settle()
    assert world.names("RayJob") == ["demo-2"]
    world.running(2, step=5)
    await world.settle()
    await finish(world, 2)
    assert world.status["phase"] == "Succeeded"
    assert asked(world) == "10Gi"
