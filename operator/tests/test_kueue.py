"""Admission by Kueue: a job waits in a queue, is admitted, evicted and queued again. Kueue and KubeRay are played;
e2e/kueue has the real ones."""

import pytest
from rljob_operator.controller.reconcile import reconcile
from rljob_operator.kube.objects import WORKLOAD, rfc3339
from rljob_operator.resources.rayjob import KUEUE_PRIORITY, KUEUE_QUEUE

from tests.conftest import NAMESPACE, FakeKube
from tests.test_lifecycle import start

COMMIT = {"name": "0001-ab/commits/step-000002", "step": 2}


class Kueue:
    """What Kueue does to an attempt's RayJob, and says in its Workload."""

    def __init__(self, world, attempt=1):
        self.world, self.ray_job = world, world.get("RayJob", f"demo-{attempt}")
        self.workload = world.kube.add(
            {
                "apiVersion": "kueue.x-k8s.io/v1beta2",
                "kind": "Workload",
                "metadata": {
                    "name": f"rayjob-demo-{attempt}-x",
                    # The fake cluster finds by our label what the operator's cache finds by the owner.
                    "labels": {"rljob.io/job": "demo"},
                    "ownerReferences": [
                        {"kind": "RayJob", "name": f"demo-{attempt}", "uid": self.ray_job["metadata"]["uid"],
                         "controller": True}
                    ],
                },
                "spec": {"active": True, "podSets": [{"name": "head"}]},
            }
        )  # fmt: skip

    def says(self, kind, status, reason, message):
        conditions = self.workload.setdefault("status", {}).setdefault("conditions", [])
        conditions[:] = [c for c in conditions if c["type"] != kind]
        since = rfc3339(self.world.kube.now)
        conditions.append(
            {"type": kind, "status": status, "reason": reason, "message": message, "lastTransitionTime": since}
        )

    def admit(self):
        """Quota is reserved, the flavor's node selector injected, the RayJob released."""
        self.says("QuotaReserved", "True", "QuotaReserved", "reserved")
        self.says("Admitted", "True", "Admitted", "admitted")
        self.workload["status"]["admission"] = {"clusterQueue": "gpus"}
        self.ray_job["spec"]["suspend"] = False
        for group in self.ray_job["spec"]["rayClusterSpec"]["workerGroupSpecs"]:
            group["template"]["spec"]["nodeSelector"] = {"flavor": "a"}

    def evict(self, reason="Preempted", message="Preempted to accommodate a workload"):
        """The RayJob is suspended; KubeRay deletes the cluster, the pods have their grace period."""
        self.says("Evicted", "True", reason, message)
        self.ray_job["spec"]["suspend"] = True
        self.ray_job["status"]["jobDeploymentStatus"] = "Suspending"

    def at_rest(self):
        """KubeRay has seen the cluster go."""
        self.ray_job["status"] = {"jobDeploymentStatus": "Suspended", "rayClusterName": ""}


def queued_job(manifest, **lifecycle):
    return manifest(lifecycle={"queue": {"name": "team-a", "priorityClass": "high"}, **lifecycle})


@pytest.fixture
async def world(make_world, manifest):
    """A job whose first attempt is in the queue."""
    world = make_world(queued_job(manifest, activeDeadlineSeconds=3600), kueue=True)
    await world.settle()
    world.retriever_ready()
    await world.settle()
    return world


async def run(world, kueue, attempt=1, **progress):
    """Admitted, the cluster up, the driver at step 3."""
    kueue.admit()
    await world.settle()
    world.running(attempt, **progress)
    await world.settle()


async def test_an_operator_without_kueue_refuses_a_queue(make_world, manifest):
    world = make_world(queued_job(manifest))
    await world.settle()
    assert world.condition("Accepted")["status"] == "False"
    assert "spec.lifecycle.queue: this operator was installed without Kueue" in world.condition("Accepted")["message"]
    assert not world.names("RayJob")
    assert not world.names("Deployment")


async def test_an_attempt_is_made_suspended_in_its_queue_and_not_written_again(world):
    ray_job = world.get("RayJob", "demo-1")
    assert ray_job["spec"]["suspend"] is True
    labels = ray_job["metadata"]["labels"]
    assert (labels[KUEUE_QUEUE], labels[KUEUE_PRIORITY]) == ("team-a", "high")
    await run(world, Kueue(world))
    world.later(3000)
    await world.settle()
    world.change(lifecycle={"suspend": True})
    await world.settle()
    assert [write for write in world.kube.writes if "RayJob/" in write] == ["create RayJob/demo-1"]
    assert ray_job["spec"]["suspend"] is False, "Kueue's, and nobody else's"


async def test_a_job_without_a_queue_is_not_suspended(make_world, manifest):
    world = make_world(manifest(), kueue=True)
    await start(world)
    ray_job = world.get("RayJob", "demo-1")
    assert "suspend" not in ray_job["spec"]
    assert KUEUE_QUEUE not in ray_job["metadata"]["labels"]
    assert world.condition("Admitted") == {}
    assert "admittedTime" not in world.status["attempts"][0]


async def test_a_job_in_the_queue_says_why_it_waits(world):
    assert world.status["phase"] == "Queued"
    assert world.condition("Admitted")["reason"] == "WaitingForAdmission"
    assert "ray.io/rayjob" in world.condition("Admitted")["message"], "there is no Workload: the integration may be off"
    kueue = Kueue(world)
    why = "couldn't assign flavors to pod set head: insufficient unused quota for cpu in flavor default, 2 more needed"
    kueue.says("QuotaReserved", "False", "Pending", why)
    await world.settle()
    assert world.condition("Admitted")["reason"] == "WaitingForAdmission"
    assert world.condition("Admitted")["message"] == f"LocalQueue team-a: {why}"
    assert world.status["message"] == f"LocalQueue team-a: {why}"
    assert world.condition("ClusterReady")["reason"] == "WaitingForAdmission"

    kueue.says("QuotaReserved", "False", "Inadmissible", "LocalQueue team-a doesn't exist")
    await world.settle()
    assert world.condition("Admitted")["reason"] == "Inadmissible"
    assert "Inadmissible" in world.event_reasons

    kueue.says("QuotaReserved", "True", "QuotaReserved", "reserved")
    kueue.workload["status"]["admissionChecks"] = [{"name": "nodes", "state": "Pending", "message": "scaling up"}]
    await world.settle()
    assert "nodes: scaling up" in world.condition("Admitted")["message"]

    kueue.admit()
    await world.settle()
    assert world.status["phase"] == "Starting"
    assert world.condition("Admitted")["status"] == "True"
    assert "ClusterQueue gpus through LocalQueue team-a" in world.condition("Admitted")["message"]


async def test_no_clock_runs_in_the_queue(world):
    world.later(10 * 3600)
    await world.settle()
    assert world.status["phase"] == "Queued", "neither activeDeadlineSeconds nor the start timeout"
    Kueue(world).admit()
    await world.settle()
    assert world.status["attempts"][0]["admittedTime"] == rfc3339(world.kube.now)
    world.later(1700)
    await world.settle()
    assert world.status["phase"] == "Starting"
    world.later(200)
    await world.settle()
    assert world.status["attempts"][0]["reason"] == "StartTimeout"


async def test_the_deadline_counts_from_admission(world):
    world.later(10 * 3600)
    await world.settle()
    await run(world, Kueue(world))
    assert await world.reconcile() == pytest.approx(3600, abs=5)
    world.later(3601)
    await world.settle()
    assert world.condition("Failed")["reason"] == "DeadlineExceeded"


async def test_preemption_ends_the_attempt_uncounted_and_the_next_is_queued_from_the_commit(world):
    kueue = Kueue(world)
    await run(world, kueue, lastCommit=COMMIT)
    kueue.evict()
    await world.settle()
    assert world.status["phase"] == "Suspending"
    assert world.condition("Admitted")["reason"] == "Evicted"
    assert world.has("RayJob", "demo-1"), "a deletion now would have KubeRay stop the driver in its commit"

    world.report(state="Suspended", exitCode=4, reason="Suspended", message="received SIGTERM",
                 step=3, lastCommit={"name": "0001-ab/commits/step-000003", "step": 3})  # fmt: skip
    await world.settle()
    first = world.status["attempts"][0]
    assert (first["state"], first["reason"], first["exitCode"]) == ("Suspended", "Preempted", 4)
    assert first["message"] == "evicted by Kueue (Preempted): Preempted to accommodate a workload"
    assert world.status.get("failedAttempts", 0) == 0
    assert not world.has("RayJob", "demo-1"), "not to be admitted again in place"

    world.collect()
    await world.settle()
    assert world.status["phase"] == "Queued"
    second = world.get("RayJob", "demo-2")
    assert second["spec"]["suspend"] is True
    assert second["spec"]["entrypoint"].endswith("--resume-from 0001-ab/commits/step-000003")
    assert world.status["attempts"][1]["startStep"] == 3


class Unlabelled(FakeKube):
    """The apiserver itself: a Workload has no label of the job's."""

    async def list(self, kind, namespace, selector=""):
        return [] if kind == WORKLOAD else await super().list(kind, namespace, selector)


async def test_what_is_confirmed_with_the_apiserver_keeps_kueues_words(world):
    kueue = Kueue(world)
    await run(world, kueue, lastCommit=COMMIT)
    kueue.evict()
    kueue.at_rest()
    world.collect()
    live = Unlabelled()
    live.objects, live.now = world.kube.objects, world.kube.now
    await reconcile(world.kube, NAMESPACE, "demo", world.settings, world.kube.now, live=live)
    (first,) = world.status["attempts"]
    assert (first["state"], first["reason"]) == ("Suspended", "Preempted")
    assert "Preempted to accommodate a workload" in first["message"]


async def test_what_the_driver_commits_after_its_attempt_was_closed_counts(world):
    kueue = Kueue(world)
    await run(world, kueue, step=5, lastCommit=COMMIT)
    kueue.evict()
    kueue.at_rest()
    await world.settle()
    first = world.status["attempts"][0]
    assert (first["reason"], first["committedStep"]) == ("Preempted", 2)
    assert first["message"].endswith("; 3 steps after step 2 not committed")
    assert not world.has("RayJob", "demo-1")
    assert not world.has("RayJob", "demo-2"), "pods of the first are still in their grace period"

    world.report(state="Suspended", exitCode=4, lastCommit={"name": "0001-ab/commits/step-000005", "step": 5})
    await world.settle()
    first = world.status["attempts"][0]
    assert (first["committedStep"], first["exitCode"]) == (5, 4)
    assert "not committed" not in first["message"]
    world.collect()
    await world.settle()
    assert world.get("RayJob", "demo-2")["spec"]["entrypoint"].endswith("step-000005")


async def test_a_head_that_goes_with_an_evicted_cluster_is_no_failure(world):
    kueue = Kueue(world)
    await run(world, kueue, lastCommit=COMMIT)
    kueue.evict()
    for name in world.names("Pod"):
        del world.kube.objects["Pod", name]
    await world.settle()
    assert world.status["attempts"][0]["state"] == "Running", "KubeRay has not finished"
    kueue.at_rest()
    await world.settle()
    assert world.status["attempts"][0]["reason"] == "Preempted"
    assert world.status.get("failedAttempts", 0) == 0


async def test_an_attempt_that_kueue_has_admitted_anew_is_ended(world):
    kueue = Kueue(world)
    await run(world, kueue, lastCommit=COMMIT)
    assert world.status["attempts"][0]["rayCluster"] == "demo-1-abcde"
    # The operator was away: suspended, admitted again, and KubeRay has made another cluster.
    kueue.ray_job["status"] = {"jobDeploymentStatus": "Initializing", "rayClusterName": "demo-1-other"}
    await world.settle()
    assert world.status["attempts"][0]["reason"] == "Preempted"
    assert not world.has("RayJob", "demo-1")
    world.collect()
    await world.settle()
    assert world.names("RayJob") == ["demo-2"]


async def test_success_stands_although_the_attempt_is_evicted_at_the_same_time(world):
    kueue = Kueue(world)
    await run(world, kueue)
    kueue.evict()
    world.report(step=10, stage="Done", state="Succeeded", exitCode=0)
    await world.settle()
    assert world.status["phase"] == "Succeeded"
    assert not world.has("RayJob", "demo-1"), "Kueue would admit it again"


@pytest.mark.parametrize(
    ("word", "reason", "counted"),
    [
        ("Preempted", "Preempted", 0),
        ("ClusterQueueStopped", "Preempted", 0),
        ("PodsReadyTimeout", "StartTimeout", 1),
        ("NodeFailures", "NodeLost", 1),
    ],
)
async def test_reasons_of_an_eviction(world, word, reason, counted):
    kueue = Kueue(world)
    await run(world, kueue)
    kueue.evict(word, "because")
    kueue.at_rest()
    await world.settle()
    assert world.status["attempts"][0]["reason"] == reason
    assert world.status.get("failedAttempts", 0) == counted


async def test_a_rule_of_the_users_holds_for_kueue_too(make_world, manifest):
    rules = [{"reasons": ["Preempted"], "action": "Fail"}]
    world = make_world(queued_job(manifest, failureRules=rules), kueue=True)
    await world.settle()
    world.retriever_ready()
    await world.settle()
    kueue = Kueue(world)
    await run(world, kueue)
    kueue.evict()
    kueue.at_rest()
    await world.settle()
    assert world.condition("Failed")["reason"] == "FailureRule"


async def test_a_deactivated_workload_is_not_gone_around(world):
    kueue = Kueue(world)
    await run(world, kueue)
    kueue.workload["spec"]["active"] = False
    kueue.evict("Deactivated", "The workload is deactivated")
    kueue.at_rest()
    world.report(state="Suspended", exitCode=4)
    world.collect(1)
    await world.settle()
    assert world.names("RayJob") == ["demo-1"], "another attempt would be another, active Workload"
    kueue.workload["spec"]["active"] = True
    await world.settle()
    assert world.names("RayJob") == ["demo-2"]


async def test_suspending_a_job_frees_its_quota(world):
    kueue = Kueue(world)
    await run(world, kueue)
    world.change(lifecycle={"suspend": True})
    await world.settle()
    assert world.has("RayJob", "demo-1"), "the driver commits first"
    world.report(state="Suspended", exitCode=4, lastCommit=COMMIT)
    await world.settle()
    world.collect()
    await world.settle()
    assert (world.status["phase"], world.names("RayJob")) == ("Suspended", [])
    assert world.condition("Admitted")["reason"] == "NoAttempt"
    assert world.status["attempts"][0]["reason"] == "Suspended"
    world.change(lifecycle={"suspend": False})
    await world.settle()
    world.retriever_ready()
    await world.settle()
    assert world.status["phase"] == "Queued"
    assert world.get("RayJob", "demo-2")["spec"]["suspend"] is True


async def test_suspending_a_job_in_the_queue_takes_it_out(world):
    Kueue(world)
    world.change(lifecycle={"suspend": True})
    await world.settle()
    assert (world.status["phase"], world.names("RayJob")) == ("Suspended", [])


async def test_scaling_is_refused_and_holds_for_the_next_attempt(world):
    kueue = Kueue(world)
    await run(world, kueue, lastCommit=COMMIT)
    world.change(rollout={"replicas": 4})
    await world.settle()
    refused = world.condition("RolloutScaled")
    assert (refused["status"], refused["reason"]) == ("False", "ScalingRefused")
    assert "keeps the 1 rollout pods" in refused["message"]
    assert world.condition("ClusterReady")["status"] == "True", "the pods that were admitted are all there"
    assert "ScalingRefused" in world.event_reasons
    groups = world.get("RayCluster", "demo-1-abcde")["spec"]["workerGroupSpecs"]
    assert next(g for g in groups if g["groupName"] == "rollout")["replicas"] == 1

    kueue.evict()
    kueue.at_rest()
    await world.settle()
    world.collect()
    await world.settle()
    groups = world.get("RayJob", "demo-2")["spec"]["rayClusterSpec"]["workerGroupSpecs"]
    assert next(g for g in groups if g["groupName"] == "rollout")["replicas"] == 4
    assert world.condition("RolloutScaled")["status"] == "True"


async def test_autoscaling_and_a_queue_exclude_each_other(make_world, manifest):
    spec = queued_job(manifest)
    spec["spec"]["rollout"]["autoscaling"] = {"minReplicas": 1, "maxReplicas": 4}
    world = make_world(spec, kueue=True)
    await world.settle()
    message = world.condition("Accepted")["message"]
    assert "spec.rollout.autoscaling: cannot be used with spec.lifecycle.queue (team-a)" in message
