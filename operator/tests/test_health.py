"""Learning health as a user sees it: conditions, Events, and what the job does next."""

import pytest

TROUBLE = {"EntropyCollapsed": {"policy": "Warn", "since": 4, "message": "mean entropy 0.002 nats"}}
COMMIT = {"name": "0001-ab/commits/step-000004", "step": 4, "policyVersion": 4}


async def start(world, attempt=1, **progress):
    await world.settle()
    world.retriever_ready()
    await world.settle()
    world.running(attempt, **progress)
    await world.settle()


@pytest.fixture
def watched(make_world, manifest):
    return make_world(manifest(lifecycle={"health": {"entropyCollapsed": "Warn", "rewardStalled": "Pause"}}))


async def test_a_warning_is_a_condition_and_an_event_and_passes(watched):
    await start(watched)
    assert watched.condition("EntropyCollapsed")["reason"] == "Healthy"
    assert not watched.condition("MismatchHigh"), "what is ignored is not shown"
    watched.report(health=TROUBLE)
    await watched.settle()
    found = watched.condition("EntropyCollapsed")
    assert (found["status"], found["reason"]) == ("True", "EntropyCollapsed")
    assert found["message"] == "mean entropy 0.002 nats (policy Warn)"
    assert watched.status["phase"] == "Running"
    (event,) = [event for event in watched.kube.events if event["reason"] == "EntropyCollapsed"]
    assert event["type"] == "Warning"
    watched.report(health={})
    await watched.settle()
    assert watched.condition("EntropyCollapsed")["status"] == "False"


async def test_rewards_that_fail_are_a_condition_with_numbers_and_an_event(watched):
    await start(watched, rewardFailures=None)
    assert not watched.condition("RewardFailing")
    said = (
        "12 of 512 samples of rollout 7 have no reward: 12 × ValueError at my_reward.py:14; 12 of 4096 in this attempt"
    )
    watched.report(rewardFailures={"message": said, "failures": 12, "samples": 4096})
    await watched.settle()
    found = watched.condition("RewardFailing")
    assert (found["status"], found["reason"], found["message"]) == ("True", "RewardFailing", said)
    assert watched.status["phase"] == "Running"
    (event,) = [event for event in watched.kube.events if event["reason"] == "RewardFailing"]
    assert (event["type"], event["message"]) == ("Warning", said)
    watched.report(rewardFailures={"message": said.replace("7", "8")})
    await watched.settle()
    assert "rollout 8" in watched.condition("RewardFailing")["message"]
    assert watched.event_reasons.count("RewardFailing") == 1, "what goes on is no news"
    watched.report(rewardFailures=None)
    await watched.settle()
    assert (watched.condition("RewardFailing")["status"], watched.condition("RewardFailing")["reason"]) == (
        "False", "Healthy",
    )  # fmt: skip


async def test_a_reward_that_always_fails_ends_the_job_at_once_and_says_where(watched):
    await start(watched)
    said = "spec.reward.functions[0] (custom, my_reward:f) gives no reward for each of the 512 samples of rollout 0"
    watched.report(
        state="Failed", exitCode=2, reason="UserError", message=said, rewardFailures={"message": "512 of 512"}
    )
    await watched.settle()
    assert watched.status["phase"] == "Failed"
    assert (watched.condition("Failed")["reason"], watched.status["attempt"]) == ("UserError", 1)
    assert said in watched.condition("Failed")["message"]
    assert watched.condition("RewardFailing")["status"] == "True"


async def pause(world):
    await start(world, lastCommit=COMMIT)
    world.report(state="Suspended", exitCode=6, message="RewardStalled: mean reward 0.1")
    await world.settle()
    world.collect()
    await world.settle()


async def test_a_pause_waits_for_the_user_and_leaves_the_spec_alone(watched):
    await pause(watched)
    assert watched.status["phase"] == "Suspended"
    assert watched.condition("Suspended")["reason"] == "Paused"
    assert "RewardStalled: mean reward 0.1; resume with `rljob resume demo`" in watched.status["message"]
    assert watched.get("RLJob", "demo")["spec"]["lifecycle"].get("suspend") is None
    assert watched.names("RayJob") == []
    assert watched.get("Deployment", "demo-retriever")["spec"]["replicas"] == 0
    assert watched.status["failedAttempts"] == 0
    watched.later(3600)
    await watched.settle()
    assert watched.status["phase"] == "Suspended"
    assert watched.event_reasons.count("Paused") == 1


async def resumed(world):
    world.retriever_ready()
    await world.settle()
    assert world.names("RayJob") == ["demo-2"]
    assert world.get("RayJob", "demo-2")["spec"]["entrypoint"].endswith(" --resume-from 0001-ab/commits/step-000004")
    world.running(2, state="Running", exitCode=None, message="", health={})
    await world.settle()
    assert world.status["phase"] == "Running"
    assert world.condition("Suspended")["reason"] == "Resumed"


async def test_a_pause_ends_by_the_annotation_of_its_attempt(watched):
    await pause(watched)
    metadata = watched.get("RLJob", "demo")["metadata"]
    for text in ("0", "yes"):
        metadata["annotations"] = {"rljob.io/resume": text}
        await watched.settle()
        assert watched.status["phase"] == "Suspended"
    metadata["annotations"] = {"rljob.io/resume": "1"}
    await watched.settle()
    await resumed(watched)
    # A later pause is another one: the annotation that is still there does not end it.
    watched.report(state="Suspended", exitCode=6, message="RewardStalled again", lastCommit=COMMIT)
    await watched.settle()
    watched.collect()
    await watched.settle()
    assert watched.status["phase"] == "Suspended"


async def test_a_pause_ends_by_suspending_and_resuming(watched):
    await pause(watched)
    watched.change(lifecycle={"suspend": True})
    await watched.settle()
    assert watched.condition("Suspended")["reason"] == "Suspended"
    watched.change(lifecycle={"suspend": False})
    await watched.settle()
    await resumed(watched)


async def test_fail_is_never_tried_again(watched):
    await start(watched)
    watched.report(state="Failed", exitCode=5, message="NonFinite: RL step 3", health={
        "NonFinite": {"policy": "Fail", "since": 4, "message": "RL step 3: loss nan"}
    })  # fmt: skip
    await watched.settle()
    assert watched.status["phase"] == "Failed"
    assert watched.condition("Failed")["reason"] == "LearningHealth"
    assert watched.condition("NonFinite")["status"] == "True"
    watched.ray_job_ends(1, "Failed")
    watched.later(3600)
    await watched.settle()
    assert watched.status["attempt"] == 1
    assert {"LearningHealth", "NonFinite"} <= set(watched.event_reasons)


@pytest.mark.parametrize("told", [True, False])
async def test_a_rollback_begins_the_next_attempt_at_once_and_costs_no_retry(watched, told):
    await start(watched, lastCommit=COMMIT)
    earlier = {"name": "0001-ab/commits/step-000002", "step": 2}
    if told:
        watched.report(state="Suspended", exitCode=7, message="MismatchHigh: …; rollback 1", lastCommit=earlier)
    else:  # its last report is lost: KubeRay alone tells the exit code
        watched.ray_job_ends(1, "Failed", message="driver: failed with exit code 7", reason="AppFailed")
        watched.later(40)
    await watched.settle()
    watched.collect()
    await watched.settle()
    assert watched.names("RayJob") == ["demo-2"]
    assert watched.status["failedAttempts"] == 0
    assert "RolledBack" in watched.event_reasons
    step = 2 if told else 4
    assert watched.get("RayJob", "demo-2")["spec"]["entrypoint"].endswith(f"step-{step:06d}")


async def test_a_target_that_is_reached_is_success_and_says_so(make_world, manifest):
    world = make_world(manifest(lifecycle={"earlyStop": {"metric": "reward", "atLeast": 0.9}}))
    await start(world)
    reached = {"target": "reward at least 0.9", "value": 0.93, "step": 4}
    world.report(step=4, state="Succeeded", exitCode=0, earlyStop=reached)
    await world.settle()
    assert world.status["phase"] == "Succeeded"
    assert world.condition("Complete")["reason"] == "TargetReached"
    assert world.status["message"] == "target reached at step 4 of 10: reward at least 0.9, it is 0.93"


async def test_a_target_that_nobody_set_is_no_success(world):
    await start(world)
    world.report(step=4, state="Succeeded", exitCode=0, earlyStop={"target": "x", "value": 1, "step": 4})
    await world.settle()
    assert world.status["phase"] == "Retrying"


async def test_a_stuck_process_is_named_and_the_attempt_is_retried(watched):
    await start(watched)
    said = "rank 1: RL step 3 for 40 s; no sign of life for 31 s, last at all_reduce (fsdp.py:3)"
    watched.report(stalled={"who": "rank 1", "doing": "RL step 3", "message": said, "stack": "/job/stacks/rank-1.txt"})
    await watched.settle()
    found = watched.condition("Stalled")
    assert (found["status"], found["reason"]) == ("True", "WorkerStalled")
    assert found["message"] == f"{said}; stack in /job/stacks/rank-1.txt"
    assert watched.event_reasons.count("WorkerStalled") == 1
    assert watched.status["phase"] == "Running"
    watched.report(state="Failed", exitCode=1, reason="WorkerStuck", message=said)
    watched.later(10)
    await watched.settle()
    watched.later(60)
    watched.collect()
    await watched.settle()
    watched.running(2, state="Running", exitCode=None, message="", stalled=None)
    await watched.settle()
    assert watched.status["attempts"][0]["reason"] == "WorkerStuck"
    assert watched.status["phase"] == "Running"
    assert watched.condition("Stalled")["reason"] == "Progressing"
