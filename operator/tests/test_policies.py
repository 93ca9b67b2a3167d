"""Each policy hands a new decision on and leaves the one that it was given as it was."""

import copy
from dataclasses import FrozenInstanceError

import pytest
from rljob_api.v1alpha1.status import AttemptStatus, RLJobStatus
from rljob_operator.controller import plan
from rljob_operator.policies.decision import Decision, Policy
from rljob_operator.state.job_view import JobView

from tests.conftest import World, job_manifest
from tests.test_crash import STORIES, _world


def unchanging(policy: Policy) -> Policy:
    """The policy, which fails when it changes what it is given."""

    def checked(view: JobView, decided: Decision) -> Decision:
        status, job = decided.status.model_dump_json(), decided.context.job.model_dump_json()
        observed, rest = copy.deepcopy(view.observed), copy.deepcopy((decided.delete, decided.create, decided.request))
        result = policy(view, decided)
        assert decided.status.model_dump_json() == status
        assert decided.context.job.model_dump_json() == job
        assert (decided.delete, decided.create, decided.request) == rest
        assert view.observed == observed
        return result

    return checked


@pytest.fixture
def checked(monkeypatch):
    monkeypatch.setattr(plan, "POLICIES", tuple(map(unchanging, plan.POLICIES)))


@pytest.mark.parametrize("story", STORIES)
async def test_no_policy_changes_what_it_is_given(checked, story):
    await story(_world(story))


async def test_nor_do_they_when_a_job_fails_is_reopened_and_autoscaled(checked):
    autoscaling = {"minReplicas": 1, "maxReplicas": 4}
    manifest = job_manifest(lifecycle={"backoffLimit": 0})
    manifest["spec"]["rollout"]["autoscaling"] = autoscaling
    world = World(manifest)
    await world.settle()
    world.retriever_ready()
    await world.settle()
    world.running(1, trainerWait=0.9, lastCommit={"name": "0001-ab/commits/step-000002", "step": 2})
    await world.settle()
    world.report(state="Failed", exitCode=1, message="rank 1 died")
    await world.settle()
    assert world.status["phase"] == "Failed"
    world.collect()
    world.change(lifecycle={"backoffLimit": 3})
    await world.settle()
    assert world.status["phase"] != "Failed"
    assert world.status["autoscaling"]["replicas"] >= 1


def test_a_policy_that_did_would_be_seen():
    def rogue(view: JobView, decided: Decision) -> Decision:
        decided.status.attempts.append(AttemptStatus(number=1, ray_job="demo-1", state="Starting"))
        return decided

    world = World(job_manifest())
    view = JobView(
        observed=plan.Observed(world.kube.objects["RLJob", "demo"]),
        context=plan.accept(world.kube.objects["RLJob", "demo"], world.settings, started=False)[1],
        now=world.kube.now,
        settings=world.settings,
    )
    with pytest.raises(AssertionError):
        unchanging(rogue)(view, Decision(RLJobStatus(), view.context))


def test_view_and_decision_are_frozen():
    with pytest.raises(FrozenInstanceError):
        Decision(RLJobStatus(), None).end = None
    assert JobView.__dataclass_params__.frozen
