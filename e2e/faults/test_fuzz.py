"""Two hundred and forty manifests from the CRD's own schema: each is refused with a message, or judged; nobody falls
over, and nobody asks again and again."""

import asyncio
from pathlib import Path
from typing import Any

import pytest
from rljob_operator.kube.client import ApiError
from rljob_operator.kube.objects import RLJOB, Obj, condition, name_of

from e2e.faults.access import Access, Admin
from e2e.faults.fuzz import generate
from e2e.faults.kill import Stage, Suite
from e2e.faults.world import World

pytestmark = [pytest.mark.cluster, pytest.mark.slow, pytest.mark.timeout(900)]
COUNT = 240
WRITES_PER_JOB = 40
QUIET_SECONDS = 3.0


async def create(admin: Admin, body: dict[str, Any]) -> str | None:
    """Why the apiserver refuses a manifest; None when it takes it."""
    try:
        await admin.create(body)
    except ApiError as error:
        if error.status not in (400, 422):
            raise
        return str(error)
    return None


async def test_every_manifest_is_refused_or_judged(access: Access, tmp_path: Path) -> None:
    bodies = generate(COUNT)
    assert len(bodies) >= 200
    # A world that does not run: nobody plays KubeRay here.
    async with Admin.connect(access) as admin, Stage(Suite(access, World(admin), tmp_path), "fuzz") as stage:
        for number, body in enumerate(bodies):
            body["metadata"] |= {"name": f"fuzz-{number}", "namespace": stage.namespace}
        gate = asyncio.Semaphore(16)

        async def one(body: dict[str, Any]) -> str | None:
            async with gate:
                return await create(admin, body)

        refusals = await asyncio.gather(*map(one, bodies))
        refused = [text for text in refusals if text]
        assert all(len(text) > 40 for text in refused), "each says why"
        jobs = await judged(admin, stage, len(bodies) - len(refused))
        accepted = sum(condition(job, "Accepted")["status"] == "True" for job in jobs)
        print(f"{len(refused)} refused, {len(jobs) - accepted} judged bad, {accepted} accepted")
        assert refused
        assert accepted
        for job in jobs:
            assert condition(job, "Accepted")["status"] == "True" or condition(job, "Accepted")["message"]
        await quiet(stage)
        assert stage.operator.alive
        assert (await stage.operator.page("/healthz"))[0] == 200
        assert len(stage.proxy.writes) <= WRITES_PER_JOB * len(jobs)
        assert "Traceback" not in stage.operator.log.read_text()


async def judged(admin: Admin, stage: Stage, count: int, seconds: float = 240.0) -> list[Obj]:
    """The jobs, once the operator has said of each whether it is accepted."""
    deadline = asyncio.get_running_loop().time() + seconds
    while True:
        jobs = await admin.list(RLJOB, stage.namespace) or []
        silent = [job for job in jobs if not condition(job, "Accepted")]
        if len(jobs) == count and not silent:
            return jobs
        if asyncio.get_running_loop().time() > deadline:
            names = [name_of(job) for job in silent]
            raise AssertionError(f"{len(silent)} of {count} are not judged: {names}; log: {stage.operator.log}")
        await asyncio.sleep(0.5)


async def quiet(stage: Stage, seconds: float = 120.0) -> None:
    """Wait until the operator has nothing more to write."""
    for _ in range(int(seconds / QUIET_SECONDS)):
        before = len(stage.proxy.writes)
        await asyncio.sleep(QUIET_SECONDS)
        if len(stage.proxy.writes) == before:
            return
    raise AssertionError(f"a hot loop: it still writes; the last: {stage.proxy.writes[-10:]}")
