"""The lifecycles of a job, as its user, its driver and KubeRay live them. Each step waits for what the operator does,
so a story is the same whether the operator lives through it or is killed on the way."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from rljob_api.contract import labels, names
from rljob_operator.kube.objects import CONFIG_MAP, LEASE, POD, RAY_CLUSTER, RAY_JOB, RLJOB, Obj, meta, rfc3339

from e2e.faults.access import Admin
from e2e.faults.manifest import manifest
from e2e.faults.world import World

NAME = "job"
STEPS = 10


@dataclass
class Cast:
    """Who acts in one run: user, driver and KubeRay, in one namespace."""

    world: World
    namespace: str
    seconds: float = 150.0
    """Limit of each wait."""
    log: list[str] = field(default_factory=list)
    """The steps taken, for the report of a failure."""

    @property
    def admin(self) -> Admin:
        """The user's access."""
        return self.world.admin

    @property
    def status(self) -> dict[str, Any]:
        """The job's status."""
        return (self.world.get(RLJOB, self.namespace, NAME) or {}).get("status") or {}

    async def until(self, what: str, probe: Callable[[], object]) -> None:
        """Wait for a step's outcome."""
        self.log.append(what)
        status = self.status
        try:
            await self.world.until(what, probe, self.seconds)
        except TimeoutError as error:
            said = {key: self.status.get(key) for key in ("phase", "message", "attempt", "conditions")}
            raise TimeoutError(f"{error}; the status was {status.get('phase')}, is {said}") from None

    # The user

    async def apply(self, **spec: Any) -> None:
        """Create the job."""
        await self.admin.create(manifest(NAME, self.namespace, **spec))

    async def set(self, **spec: Any) -> None:
        """Change its spec."""
        await self.admin.patch(RLJOB, self.namespace, NAME, {"spec": spec})

    async def delete(self) -> None:
        """Delete it, and wait until it is gone."""
        job = await self.admin.get(RLJOB, self.namespace, NAME)
        if job:
            await self.admin.delete(RLJOB, self.namespace, NAME, job["metadata"]["uid"])
        await self.until("the job is gone", lambda: self.world.get(RLJOB, self.namespace, NAME) is None)

    async def phase(self, phase: str) -> None:
        """Wait for a phase."""
        await self.until(f"phase {phase}", lambda: self.status.get("phase") == phase)

    # The driver

    async def starts(self, attempt: int, **progress: Any) -> None:
        """The driver of an attempt starts once its head is there and the Lease is its own, and reports."""
        await self.until(f"the head of attempt {attempt}", lambda: self.head(attempt))
        lease = await self.admin.get(LEASE, self.namespace, names.driver(NAME))
        assert lease is not None, "a head runs and there is no Lease"
        assert meta(lease, "annotations", labels.ATTEMPT) == str(attempt), "the Lease is not the new attempt's"
        base = {"stage": "RL", "step": 3, "totalSteps": STEPS, "state": "Running", "exitCode": None}
        await self.report(attempt=attempt, **(base | progress))
        await self.phase("Running")

    async def report(self, **progress: Any) -> None:
        """The driver writes its progress."""
        name = names.progress(NAME)
        await self.until("the progress ConfigMap", lambda: self.world.get(CONFIG_MAP, self.namespace, name))

        def change(config_map: Obj) -> dict[str, Any]:
            before = json.loads((config_map.get("data") or {}).get("progress.json", "{}"))
            return {"data": {"progress.json": json.dumps(before | progress)}}

        await self.admin.update(CONFIG_MAP, self.namespace, name, change)

    def head(self, attempt: int) -> bool:
        """Whether the head of an attempt is ready and KubeRay says so."""
        cluster = f"{names.ray_job(NAME, attempt)}-abcde"

        pod = self.world.get(POD, self.namespace, f"{cluster}-head-0")
        told = self.world.get(RAY_JOB, self.namespace, names.ray_job(NAME, attempt))
        running = (pod or {}).get("status", {}).get("phase") == "Running"
        return running and ((told or {}).get("status") or {}).get("rayClusterName") == cluster

    def asked(self) -> dict[str, Any]:
        """What the operator asks of the driver."""
        found: dict[str, Any] = {}
        control = self.world.get(CONFIG_MAP, self.namespace, names.control(NAME))
        if control:
            found = json.loads(control.get("data", {}).get("request.json", "{}"))
        return found

    # KubeRay

    async def ray_job_ends(
        self, attempt: int, deployment: str = "Complete", at: datetime = datetime(2026, 1, 1, tzinfo=UTC)
    ) -> None:
        """The RayJob has ended; the cluster is taken down."""
        name = names.ray_job(NAME, attempt)
        status = {"jobDeploymentStatus": deployment, "endTime": rfc3339(at)}
        await self.admin.patch(RAY_JOB, self.namespace, name, {"status": status}, "status")

    def cluster(self, attempt: int) -> Obj | None:
        """The RayCluster of an attempt."""
        return self.world.get(RAY_CLUSTER, self.namespace, f"{names.ray_job(NAME, attempt)}-abcde")


def commit(step: int) -> dict[str, Any]:
    """A commit, as the driver reports it."""
    return {"name": f"0001-ab/commits/step-{step:06d}", "step": step}


async def create(cast: Cast) -> None:
    """With a retriever: from the manifest to Succeeded."""
    await cast.apply()
    await cast.starts(1)
    await cast.report(step=STEPS, stage="Done", state="Succeeded", exitCode=0, lastCommit=commit(STEPS))
    await cast.ray_job_ends(1)
    await cast.phase("Succeeded")


async def retry(cast: Cast) -> None:
    """Two attempts fail, one by its driver's word and one by a lost head; the third goes on from the commit."""
    await cast.apply(retriever=None)
    await cast.starts(1, lastCommit=commit(2))
    await cast.report(state="Failed", exitCode=1, message="rank 1 died")
    await cast.starts(2, lastCommit=commit(4), step=5)
    name = f"{names.ray_job(NAME, 2)}-abcde-head-0"
    pod = await cast.admin.get(POD, cast.namespace, name)
    assert pod is not None
    lost = {"status": {"phase": "Failed", "reason": "Evicted", "message": "The node was low on memory."}}
    await cast.admin.patch(POD, cast.namespace, name, lost, "status")
    await cast.starts(3, step=6)
    ray_job = cast.world.get(RAY_JOB, cast.namespace, names.ray_job(NAME, 3)) or {}
    assert commit(4)["name"] in ray_job["spec"]["entrypoint"], "the third attempt does not resume from the commit"
    await cast.report(step=STEPS, stage="Done", state="Succeeded", exitCode=0)
    await cast.ray_job_ends(3)
    await cast.phase("Succeeded")


async def suspend(cast: Cast) -> None:
    """Suspended while it trains, with a commit; resumed; suspended again before the driver has started; resumed."""
    await cast.apply()
    await cast.starts(1)
    await cast.set(lifecycle={"suspend": True})
    await cast.until("the driver is asked", lambda: cast.asked().get("suspend") is True)
    await cast.report(step=4, state="Suspended", exitCode=4, lastCommit=commit(4))
    await cast.phase("Suspended")
    await cast.until("no pods", lambda: cast.cluster(1) is None and not cast.head(1))
    await cast.set(lifecycle={"suspend": False})
    await cast.starts(2, step=4)
    await cast.report(step=STEPS, stage="Done", state="Succeeded", exitCode=0)
    await cast.ray_job_ends(2)
    await cast.phase("Succeeded")


async def scale(cast: Cast) -> None:
    """The rollout group grows and shrinks while it trains."""
    await cast.apply(retriever=None)
    await cast.starts(1)
    for replicas in (3, 2):
        await cast.set(rollout={"replicas": replicas})
        await cast.until(f"{replicas} rollout pods", lambda r=replicas: _rollout(cast) == r)  # type: ignore[misc]
    await cast.report(step=STEPS, stage="Done", state="Succeeded", exitCode=0)
    await cast.ray_job_ends(1)
    await cast.phase("Succeeded")


def _rollout(cast: Cast) -> int:
    return sum(meta(p, "labels", labels.ROLE) == "rollout" for p in cast.world.of(POD, cast.namespace))


async def delete(cast: Cast) -> None:
    """Deleted while it trains: nothing is left."""
    await cast.apply()
    await cast.starts(1)
    await cast.delete()


async def fail(cast: Cast) -> None:
    """A mistake in the job: failed for good, then deleted."""
    await cast.apply(retriever=None)
    await cast.starts(1)
    await cast.report(state="Failed", exitCode=2, message="no such column")
    await cast.ray_job_ends(1, "Failed")
    await cast.phase("Failed")


async def silent(cast: Cast) -> None:
    """KubeRay says that the driver has ended, which itself says nothing: judged after a grace, by the clock."""
    await cast.apply(retriever=None)
    await cast.starts(1)
    await cast.ray_job_ends(1, "Failed", at=datetime.now(UTC))
    await cast.starts(2)
    await cast.delete()


Story = Callable[[Cast], Awaitable[None]]
LIFECYCLES: dict[str, Story] = {
    story.__name__: story for story in (create, retry, suspend, scale, delete, fail)
}  # fmt: skip
"""What the operator is killed in."""
STORIES: dict[str, Story] = LIFECYCLES | {"silent": silent}
SETTINGS: dict[str, dict[str, Any]] = {"silent": {"report_grace_seconds": 3.0}}
"""The operator's settings in a story, where they are not the usual ones."""
