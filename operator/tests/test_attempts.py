"""Why attempts end, what follows from it, and how many times a job is tried."""

import pytest

from tests.test_lifecycle import start


async def fail(world, attempt, reason="DriverFailed", code=1, **progress):
    """The driver of the attempt fails; the cluster goes, the pause before the next attempt passes."""
    world.report(attempt=attempt, state="Failed", exitCode=code, reason=reason, message=f"crash {attempt}", **progress)
    await world.settle()
    world.collect()
    world.later(400)
    await world.settle()


async def again(world, attempt, **progress):
    """The next attempt runs."""
    world.running(attempt, reason=None, message="", **progress)
    await world.settle()


def commit(step, attempt=1):
    return {"name": f"{attempt:04d}-ab/commits/step-{step:06d}", "step": step}


def pod_of(world, group, attempt=1):
    return world.get("Pod", f"demo-{attempt}-abcde-{group}-0")


def oom(pod):
    ended = {"terminated": {"reason": "OOMKilled", "exitCode": 137}}
    pod["status"] = {"phase": "Failed", "containerStatuses": [{"name": "ray", "state": ended}]}


def disrupt(pod, reason, **status):
    target = {"type": "DisruptionTarget", "status": "True", "reason": reason, "message": "for a better one"}
    pod["status"] = {"phase": "Failed", "conditions": [target], **status}


async def test_a_rank_killed_for_memory_is_named_and_tried_again(world):
    await start(world)
    oom(pod_of(world, "trainer"))
    world.report(state="Failed", exitCode=1, reason="WorkerLost", message="rank 0 died while training")
    await world.settle()
    attempt = world.status["attempts"][0]
    assert attempt["reason"] == "OutOfMemory"
    assert (
        "rank 0 died while training; trainer pod demo-1-abcde-trainer-0: container ray was killed" in attempt["message"]
    )
    assert any("(OutOfMemory)" in e["message"] for e in world.kube.events if e["reason"] == "AttemptFailed")
    assert world.status["phase"] == "Retrying"


async def test_the_pods_get_a_moment_to_tell_why_a_worker_was_lost(world):
    await start(world)
    pod_of(world, "rollout")["status"]["conditions"][0]["status"] = "False"
    world.report(state="Failed", exitCode=1, reason="WorkerLost", message="engine 0 died", time="2026-01-01T00:00:00Z")
    await world.settle()
    assert world.status["phase"] == "Running", "the kubelet has not told yet"
    assert await world.reconcile() == pytest.approx(6.0)
    disrupt(pod_of(world, "rollout"), "TerminationByKubelet")
    await world.settle()
    assert world.status["attempts"][0]["reason"] == "Evicted"


async def test_a_worker_that_was_lost_for_no_reason_known_is_not_waited_for_for_ever(world):
    await start(world)
    pod_of(world, "rollout")["status"]["conditions"][0]["status"] = "False"
    world.report(state="Failed", exitCode=1, reason="WorkerLost", message="engine 0 died", time="2026-01-01T00:00:00Z")
    await world.settle()
    world.later(6)
    await world.settle()
    assert world.status["attempts"][0]["reason"] == "WorkerLost"


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        ("PreemptionByScheduler", "Preempted"), ("EvictionByEvictionAPI", "Evicted"),
        ("DeletionByTaintManager", "NodeLost"), ("TerminationByKubelet", "Evicted"),
    ],
)  # fmt: skip
async def test_a_disrupted_head_says_why(world, said, reason):
    await start(world)
    disrupt(pod_of(world, "head"), said)
    await world.settle()
    attempt = world.status["attempts"][0]
    assert (attempt["state"], attempt["reason"]) == ("Failed", reason)
    assert "for a better one" in attempt["message"]
    assert world.status["failedAttempts"] == (0 if reason == "Preempted" else 1)


async def test_preempted_after_a_commit_says_so_and_what_was_lost(world):
    await start(world, step=5, lastCommit=commit(5))
    head = pod_of(world, "head")
    head["status"]["conditions"].append(
        {"type": "DisruptionTarget", "status": "True", "reason": "PreemptionByScheduler", "message": "by prod/big"}
    )
    world.report(state="Suspended", exitCode=4, reason="Suspended", message="received SIGTERM")
    await world.settle()
    attempt = world.status["attempts"][0]
    assert (attempt["state"], attempt["reason"]) == ("Suspended", "Preempted")
    assert (attempt["endStep"], attempt["committedStep"]) == (5, 5)
    assert "by prod/big" in attempt["message"]
    assert world.status["failedAttempts"] == 0


@pytest.mark.parametrize("code", [2])
async def test_a_users_mistake_has_no_second_attempt_whatever_the_rules_say(make_world, manifest, code):
    every = {"reasons": ["DriverFailed", "WorkerLost"], "action": "RetryUncounted"}
    world = make_world(manifest(lifecycle={"failureRules": [every]}))
    await start(world)
    await fail(world, 1, reason="UserError", code=code)
    assert world.condition("Failed")["reason"] == "UserError"
    assert world.status["attempts"][0]["reason"] == "UserError"
    assert world.names("RayJob") == []


async def test_a_rule_of_the_users_ends_the_job(make_world, manifest):
    world = make_world(manifest(lifecycle={"failureRules": [{"reasons": ["OutOfMemory"], "action": "Fail"}]}))
    await start(world)
    await fail(world, 1, reason="OutOfMemory")
    assert world.condition("Failed")["reason"] == "FailureRule"
    assert "OutOfMemory" in world.condition("Failed")["message"]


async def test_a_rule_of_the_users_keeps_a_failure_out_of_the_count(make_world, manifest):
    rule = {"reasons": ["CommunicationError"], "action": "RetryUncounted"}
    world = make_world(manifest(lifecycle={"failureRules": [rule], "backoffLimit": 0}))
    await start(world)
    for attempt in (1, 2):
        await fail(world, attempt, reason="CommunicationError")
        await again(world, attempt + 1)
    assert world.status["phase"] == "Running"
    assert world.status["failedAttempts"] == 0
    await fail(world, 3)
    assert world.condition("Failed")["reason"] == "BackoffLimitExceeded"


class TestRetryBudget:
    async def test_refills_with_every_commit_of_new_steps(self, make_world, manifest):
        world = make_world(manifest(lifecycle={"backoffLimit": 1}))
        await start(world)
        for attempt in range(1, 6):
            await fail(world, attempt, step=attempt, lastCommit=commit(attempt, attempt))
            assert world.status["failedAttempts"] == 1
            await again(world, attempt + 1, step=attempt)
        assert world.status["phase"] == "Running", "five failures, each after progress"

    async def test_is_used_up_without_progress(self, make_world, manifest):
        world = make_world(manifest(lifecycle={"backoffLimit": 1}))
        await start(world)
        await fail(world, 1, lastCommit=commit(4))
        await again(world, 2, step=4)
        await fail(world, 2, lastCommit=commit(4), step=7)  # steps that were not committed are no progress
        assert world.condition("Failed")["reason"] == "BackoffLimitExceeded"
        assert "2 attempts failed since step 4 was committed, backoffLimit is 1" in world.condition("Failed")["message"]

    async def test_steps_that_were_committed_before_are_no_progress(self, make_world, manifest):
        """After a rollback the same steps are trained again: that must not go on for ever."""
        world = make_world(manifest(lifecycle={"backoffLimit": 1}))
        await start(world)
        await fail(world, 1, lastCommit=commit(8), step=8)
        await again(world, 2, step=2, lastCommit=commit(2))
        await fail(world, 2, lastCommit=commit(6, 2), step=6)
        assert world.condition("Failed")["reason"] == "BackoffLimitExceeded"

    async def test_can_be_had_for_the_whole_job(self, make_world, manifest):
        world = make_world(manifest(lifecycle={"backoffLimit": 1, "backoffReset": "Never"}))
        await start(world)
        await fail(world, 1, lastCommit=commit(1), step=1)
        await again(world, 2, step=1)
        await fail(world, 2, lastCommit=commit(5, 2), step=5)
        assert world.condition("Failed")["reason"] == "BackoffLimitExceeded"

    async def test_can_be_raised_once_it_is_used_up(self, make_world, manifest):
        """The volume was full, and is no longer: the job goes on from its last commit."""
        world = make_world(manifest(lifecycle={"backoffLimit": 1}))
        await start(world)
        await fail(world, 1, reason="StorageFull", lastCommit=commit(4))
        await again(world, 2, step=4)
        await fail(world, 2, reason="StorageFull", lastCommit=commit(4), step=7)
        world.collect()
        await world.settle()
        assert world.condition("Failed")["status"] == "True"
        assert world.status["completionTime"]
        await world.settle()
        assert world.status["phase"] == "Failed", "as long as nobody does anything"

        world.change(lifecycle={"backoffLimit": 3})
        await world.settle()
        world.retriever_ready()
        await world.settle()
        assert world.condition("Failed")["status"] == "False"
        assert "completionTime" not in world.status
        await again(world, 3, step=4)
        assert world.status["phase"] == "Running"
        assert world.status["attempts"][-1]["startStep"] == 4
        world.report(attempt=3, state="Succeeded", exitCode=0, step=10, totalSteps=10)
        await world.settle()
        assert world.status["phase"] == "Succeeded"

    async def test_brings_no_job_back_that_failed_for_another_reason(self, make_world, manifest):
        world = make_world(manifest(lifecycle={"backoffLimit": 1}))
        await start(world)
        await fail(world, 1, code=2, reason="UserError")
        world.change(lifecycle={"backoffLimit": 3})
        await world.settle()
        assert world.status["phase"] == "Failed"
        assert world.names("RayJob") == []

    async def test_refills_the_pause_too(self, world):
        await start(world)
        await fail(world, 1, lastCommit=commit(1), step=1)
        await again(world, 2, step=1)
        world.report(attempt=2, state="Failed", exitCode=1, lastCommit=commit(2, 2), step=2)
        await world.settle()
        world.collect()
        await world.settle()
        assert await world.reconcile() == pytest.approx(5.0)


async def test_deadline_counts_attempts_that_are_no_longer_listed(make_world, manifest):
    world = make_world(manifest(lifecycle={"activeDeadlineSeconds": 4000, "backoffLimit": 100}))
    await start(world)
    for attempt in range(1, 41):
        world.later(99)
        await fail(world, attempt)
        if world.condition("Failed")["status"] == "True":
            break
        await again(world, attempt + 1)
    world.later(99)
    await world.settle()
    assert world.condition("Failed")["reason"] == "DeadlineExceeded"
    assert len(world.status["attempts"]) == 32
    assert world.status["attempts"][-1]["reason"] == "DeadlineExceeded"
