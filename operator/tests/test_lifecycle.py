"""A job's way through its phases, as a user sees it in the status."""

import pytest


async def start(world, attempt=1, **progress):
    """Bring a fresh job to a running driver."""
    await world.settle()
    world.retriever_ready()
    await world.settle()
    world.running(attempt, **progress)
    await world.settle()


async def test_from_apply_to_success(world):
    world.kube.jobs_complete = False
    await world.settle()
    assert world.status["phase"] == "Pending"
    (preparation,) = world.names("Job")
    world.get("Job", preparation)["status"] = {"conditions": [{"type": "Complete", "status": "True"}]}
    await world.settle()
    assert world.status["phase"] == "Preparing"
    assert world.condition("Accepted")["status"] == "True"
    assert not world.names("RayJob"), "no GPUs are held while the index is built"

    deployment = world.get("Deployment", "demo-retriever")
    world.pod(
        "demo-retriever-x", deployment["spec"]["template"]["metadata"]["labels"], phase="Pending",
        initContainerStatuses=[{"name": "prepare", "state": {"running": {}}}],
    )  # fmt: skip
    await world.settle()
    assert world.status["phase"] == "Preparing"

    world.retriever_ready()
    await world.settle()
    assert world.status["phase"] == "Starting"
    assert world.names("RayJob") == ["demo-1"]
    assert world.get("Lease", "demo-driver")["metadata"]["annotations"]["rljob.io/attempt"] == "1"

    commit = {"name": "0001-ab/commits/step-000003", "step": 3, "policyVersion": 1}
    world.running(
        reward=0.41234, tokensPerSecond=900.4, goodput=0.7251, lastCommit=commit, evaluation={"held-out/after_sft": 0.2}
    )
    await world.settle()
    status = world.status
    assert status["phase"] == "Running"
    assert (status["progress"], status["reward"], status["tokensPerSecond"]) == ("3/10", "0.4123", "900")
    assert status["goodput"] == "0.725"
    assert status["evaluation"] == {"held-out/after_sft": "0.2"}
    assert world.condition("Training")["status"] == world.condition("ClusterReady")["status"] == "True"

    world.report(step=10, stage="Done", state="Succeeded", exitCode=0)
    await world.settle()
    assert world.status["phase"] == "Succeeded"
    assert world.condition("Complete")["status"] == "True"
    assert world.condition("Failed")["status"] == "False"
    assert world.get("Deployment", "demo-retriever")["spec"]["replicas"] == 0
    assert world.has("RayJob", "demo-1"), "the driver may still be writing its last lines"
    world.ray_job_ends(1, "Complete")
    await world.settle()
    assert world.has("RayJob", "demo-1"), "kept for the record"
    assert world.has("PersistentVolumeClaim", "demo-data")
    assert world.event_reasons.count("Succeeded") == 1


async def test_success_needs_every_step(world):
    await start(world)
    world.report(step=9, state="Succeeded", exitCode=0)
    await world.settle()
    assert world.status["phase"] == "Retrying"
    assert "9 of 10 steps" in world.status["attempts"][0]["message"]


async def test_driver_that_ends_without_a_word_is_a_failure(world):
    await start(world)
    world.ray_job_ends(1, "Complete")
    await world.settle()
    assert world.status["phase"] == "Running", "its report may be on the way"
    world.later(40)
    await world.settle()
    assert world.status["phase"] == "Retrying"
    assert "without reporting success, last at step 3 of 10" in world.status["message"]


async def test_failed_attempt_is_tried_again_from_the_last_commit(world):
    commit = {"name": "0001-ab/commits/step-000002", "step": 2}
    await start(world, lastCommit=commit)
    world.report(state="Failed", exitCode=1, message="rank 0 died")
    await world.settle()
    assert world.status["phase"] == "Retrying"
    assert world.status["message"] == "attempt 1 failed: rank 0 died; 1 step after step 2 not committed"
    assert world.names("RayJob") == [], "recorded, then deleted"

    world.later(60)
    await world.settle()
    assert world.names("RayJob") == [], "pods of the attempt before are still there"
    world.collect()
    await world.settle()
    assert world.names("RayJob") == ["demo-2"]
    entrypoint = world.get("RayJob", "demo-2")["spec"]["entrypoint"]
    assert " --attempt 2 --incarnation 0002-" in entrypoint
    assert entrypoint.endswith(" --resume-from 0001-ab/commits/step-000002")
    assert world.status["attempts"][1]["startStep"] == 2
    assert world.get("Lease", "demo-driver")["metadata"]["annotations"]["rljob.io/attempt"] == "2"
    assert world.status["failedAttempts"] == 1


async def test_back_off_before_a_retry(world):
    await start(world)
    world.report(state="Failed", exitCode=1, message="x")
    await world.settle()
    world.collect()
    await world.settle()
    assert world.status["phase"] == "Retrying"
    assert world.condition("ClusterReady")["reason"] == "WaitingForBackoff"
    assert await world.reconcile() == pytest.approx(5.0)
    world.later(5)
    await world.settle()
    assert world.status["phase"] == "Starting"


async def test_backoff_limit(make_world, manifest):
    world = make_world(manifest(lifecycle={"backoffLimit": 1}))
    await start(world)
    for attempt in (1, 2):
        world.report(attempt=attempt, state="Failed", exitCode=1, message=f"crash {attempt}")
        await world.settle()
        world.collect()
        world.later(60)
        await world.settle()
        if attempt == 1:
            world.running(2)
            await world.settle()
    assert world.status["phase"] == "Failed"
    assert world.condition("Failed")["reason"] == "BackoffLimitExceeded"
    assert "crash 2" in world.condition("Failed")["message"]
    assert world.condition("Complete")["status"] == "False"
    assert world.status["attempt"] == 2


async def test_users_mistake_is_not_tried_again(world):
    await start(world)
    world.report(state="Failed", exitCode=2, message="data.train.path: no such file")
    await world.settle()
    assert world.status["phase"] == "Failed"
    assert world.condition("Failed")["reason"] == "UserError"
    assert "no such file" in world.status["message"]


async def test_exit_code_is_read_from_the_ray_job_when_the_driver_could_not_report(world):
    await start(world)
    world.ray_job_ends(
        1, "Failed", reason="AppFailed", message="Job entrypoint command failed with exit code 2, last available logs"
    )
    world.later(31)
    await world.settle()
    assert world.condition("Failed")["reason"] == "UserError"


async def test_lost_head_fails_the_attempt(world):
    await start(world)
    del world.kube.objects["Pod", "demo-1-abcde-head-0"]
    await world.settle()
    assert world.status["attempts"][0]["state"] == "Failed"
    assert "head" in world.status["attempts"][0]["message"]


async def test_ray_job_deleted_by_hand_fails_the_attempt(world):
    await start(world)
    del world.kube.objects["RayJob", "demo-1"]
    world.collect()
    await world.settle()
    assert world.status["phase"] == "Retrying"
    world.later(10)
    await world.settle()
    assert world.names("RayJob") == ["demo-2"]


CHILDREN = [
    ("ConfigMap", "demo-config"), ("ConfigMap", "demo-progress"), ("Role", "demo-driver"), ("Lease", "demo-driver"),
    ("Service", "demo-retriever"), ("Deployment", "demo-retriever"), ("PersistentVolumeClaim", "demo-data"),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "name"), CHILDREN)
async def test_child_deleted_by_hand_comes_back(world, kind, name):
    await start(world)
    del world.kube.objects[kind, name]
    await world.settle()
    assert world.has(kind, name)
    assert world.status["phase"] == "Running"


async def test_child_changed_by_hand_is_put_right(world):
    await start(world)
    world.get("Role", "demo-driver")["rules"] = []
    await world.settle()
    assert len(world.get("Role", "demo-driver")["rules"]) == 3


async def test_progress_of_the_driver_is_never_overwritten(world):
    await start(world, step=5)
    before = world.get("ConfigMap", "demo-progress")["data"]
    del world.get("ConfigMap", "demo-progress")["metadata"]["annotations"]
    await world.settle()
    assert world.get("ConfigMap", "demo-progress")["data"] == before


async def test_invalid_spec_creates_nothing_and_can_be_mended(make_world, manifest):
    world = make_world(manifest(trainer={"backend": "megatron"}))
    await world.settle()
    accepted = world.condition("Accepted")
    assert accepted["status"] == "False"
    assert "spec.trainer.backend" in accepted["message"]
    assert set(world.kube.objects) == {("RLJob", "demo")}
    assert "InvalidSpec" in world.event_reasons
    world.change(trainer={"backend": "fsdp"})
    await world.settle()
    assert world.condition("Accepted")["status"] == "True"
    assert world.condition("Accepted")["observedGeneration"] == 2
    assert world.has("Deployment", "demo-retriever")


async def test_patch_that_cannot_be_merged_is_told_before_anything_runs(make_world, manifest):
    patch = {"spec": {"containers": [{"image": "x"}]}}
    world = make_world(manifest(trainer={"backend": "fsdp", "pod": {"podTemplatePatch": patch}}))
    await world.settle()
    assert "must be an object with name" in world.condition("Accepted")["message"]


async def test_kuberay_missing_heals_by_itself(world):
    world.kube.kuberay = False
    await world.settle()
    assert world.condition("ClusterReady")["reason"] == "KubeRayMissing"
    assert world.status["phase"] == "Pending"
    assert not world.names("Deployment"), "nothing that costs"
    assert await world.reconcile() == 30.0
    world.kube.kuberay = True
    await world.settle()
    assert world.names("Deployment") == ["demo-retriever"]


async def test_pods_that_cannot_be_scheduled_are_not_silent(world):
    await world.settle()
    world.retriever_ready()
    await world.settle()
    world.cluster_up()
    pod = world.get("Pod", "demo-1-abcde-trainer-0")
    unschedulable = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable"}
    pod["status"] = {
        "phase": "Pending",
        "conditions": [unschedulable | {"message": "0/3 nodes: Insufficient nvidia.com/gpu"}],
    }
    await world.settle()
    assert world.condition("ClusterReady")["reason"] == "Unschedulable"
    assert "Insufficient nvidia.com/gpu" in world.status["message"]
    assert "Unschedulable" in world.event_reasons
    world.later(7200)
    await world.settle()
    assert world.status["attempts"][0]["state"] == "Starting", "capacity may come"


async def test_pods_that_never_start_fail_the_attempt_with_the_reason(world):
    await world.settle()
    world.retriever_ready()
    await world.settle()
    world.cluster_up()
    waiting = {"waiting": {"reason": "ImagePullBackOff", "message": "no such image"}}
    world.get("Pod", "demo-1-abcde-rollout-0")["status"] = {"containerStatuses": [{"name": "ray", "state": waiting}]}
    await world.settle()
    assert world.condition("ClusterReady")["reason"] == "ImagePullFailed"
    world.later(1801)
    await world.settle()
    assert world.status["attempts"][0]["state"] == "Failed"
    assert "no such image" in world.status["attempts"][0]["message"]


async def crash_retriever(world, exit_code: int, message: str) -> None:
    await world.settle()
    labels = world.get("Deployment", "demo-retriever")["spec"]["template"]["metadata"]["labels"]
    crash = {
        "name": "prepare",
        "state": {"waiting": {"reason": "CrashLoopBackOff"}},
        "lastState": {"terminated": {"exitCode": exit_code, "message": message}},
    }
    world.pod("r-0", labels, phase="Pending", initContainerStatuses=[crash])
    await world.settle()


async def test_failing_retriever_says_why(world):
    await crash_retriever(world, 1, "the disk is full")
    condition = world.condition("RetrieverReady")
    assert condition["reason"] == "RetrieverFailing"
    assert "prepare (exit 1): the disk is full" in condition["message"]
    assert world.status["phase"] == "Preparing"


async def test_a_mistake_that_the_retriever_finds_fails_the_job(world):
    await crash_retriever(world, 2, "data.prepare.args: unknown argument")
    assert world.status["phase"] == "Failed"
    condition = world.condition("Failed")
    assert condition["reason"] == "UserError"
    assert "prepare (exit 2): data.prepare.args: unknown argument" in condition["message"]


async def test_scaling_patches_the_cluster_by_group(world):
    await start(world)
    world.change(rollout={"replicas": 3})
    await world.settle()
    groups = {
        g["groupName"]: g["replicas"] for g in world.get("RayCluster", "demo-1-abcde")["spec"]["workerGroupSpecs"]
    }
    assert groups == {"trainer": 1, "rollout": 3}
    assert world.get("RayJob", "demo-1")["metadata"]["generation"] == 1, "a running attempt's RayJob is left alone"


async def test_the_step_stays_while_a_driver_has_not_read_its_commit_yet(world):
    await start(world)
    world.report(step=4, totalSteps=10)
    await world.settle()
    assert world.status["progress"] == "4/10"
    world.report(stage="Prepare", step=0, totalSteps=0)
    await world.settle()
    assert (world.status["stage"], world.status["progress"]) == ("Prepare", "4/10")


async def test_active_deadline(make_world, manifest):
    world = make_world(manifest(lifecycle={"activeDeadlineSeconds": 100}))
    await start(world)
    assert await world.reconcile() == pytest.approx(100)
    world.later(101)
    await world.settle()
    assert world.condition("Failed")["reason"] == "DeadlineExceeded"
    assert world.names("RayJob") == []


async def test_time_to_live_after_the_end(make_world, manifest):
    world = make_world(manifest(lifecycle={"ttlSecondsAfterFinished": 60}))
    await start(world)
    world.report(step=10, state="Succeeded", exitCode=0)
    await world.settle()
    world.ray_job_ends(1, "Complete")
    world.later(61)
    await world.settle()
    assert not world.has("RLJob", "demo")


async def test_finished_job_whose_ray_job_never_ends_is_cleared_up(world):
    await start(world)
    world.report(step=10, state="Succeeded", exitCode=0)
    await world.settle()
    world.later(31)
    await world.settle()
    assert world.names("RayJob") == []


async def test_foreign_object_is_not_taken_over(world):
    theirs = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "demo-config"}, "data": {"keep": "me"}}
    world.kube.add(theirs)
    await world.settle()
    assert world.get("ConfigMap", "demo-config")["data"] == {"keep": "me"}
    assert world.condition("Accepted")["reason"] == "NameConflict"
    assert "ConfigMap demo-config" in world.status["message"]
    assert world.event_reasons == ["NameConflict"]
    assert not world.names("Job"), "nothing runs without it"
    del world.kube.objects["ConfigMap", "demo-config"]
    world.later(5)
    await world.settle()
    assert world.condition("Accepted")["status"] == "True"


async def test_started_job_is_not_refused_by_a_later_operator(world):
    await start(world)
    world.kube.objects["RLJob", "demo"]["spec"]["trainer"]["backend"] = "megatron"
    await world.settle()
    assert world.status["phase"] == "Running"
    assert world.condition("Accepted")["status"] == "True"


async def test_report_that_cannot_be_read_is_not_fatal(world):
    await start(world)
    world.get("ConfigMap", "demo-progress")["data"]["progress.json"] = '{"attempt": "one"'
    await world.settle()
    assert world.status["step"] == 3


async def test_zombie_of_an_earlier_attempt_is_not_believed(world):
    await start(world)
    world.report(state="Failed", exitCode=1, message="x")
    await world.settle()
    world.collect()
    world.later(10)
    await world.settle()
    world.report(attempt=1, step=10, state="Succeeded", exitCode=0)
    await world.settle()
    assert world.status["phase"] == "Starting"
    assert world.status["attempt"] == 2
