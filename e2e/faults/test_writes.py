"""How many writes a job costs over its whole life, and none after a restart: numbers, not times (docs/scale.md)."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest
from rljob_api.contract import names
from rljob_operator.kube.objects import CONFIG_MAP, POD, RAY_JOB, RLJOB

from e2e.faults.access import Access, Admin
from e2e.faults.kill import Stage, Suite
from e2e.faults.manifest import manifest
from e2e.faults.stories import STEPS
from e2e.faults.world import World

pytestmark = [pytest.mark.cluster, pytest.mark.slow, pytest.mark.timeout(600)]
PLAIN, SEARCHING = 20, 10
SETTLE_SECONDS, QUIET_SECONDS = 1.0, 2.5
"""Seconds that a status may be late, and without a write after which nothing more comes."""
"""Jobs without a retriever, and with one."""
BEYOND_CHILDREN = 10
LOOKED_AT = 'rljob_operator_reconcile_total{result="ok"}'


def beyond_children(writes: Iterable[str], job: str) -> int:
    """Writes of one job less the objects made for it. `writes` are `METHOD path`; creations by POST, which do not name
    their object, are left out: each is an Event, or makes a child."""
    found = [write.split(" ") for write in writes]
    mine = [(m, path.split("/")) for m, path in found if m != "POST" and f"/{job}" in path]
    its = [(m, parts) for m, parts in mine if any(p == job or p.startswith(f"{job}-") for p in parts)]
    applied = {tuple(parts) for method, parts in its if method == "PATCH" and "rljobs" not in parts}
    return len(its) - len(applied)


async def test_a_jobs_whole_life_costs_its_children_and_ten_writes(access: Access, tmp_path: Path) -> None:
    jobs = [f"plain-{i:02}" for i in range(PLAIN)] + [f"search-{i:02}" for i in range(SEARCHING)]
    async with (
        Admin.connect(access) as admin,
        World(admin).running() as world,
        Stage(Suite(access, world, tmp_path), "writes", settle_seconds=SETTLE_SECONDS) as stage,
    ):
        at, proxy = stage.namespace, stage.proxy

        async def every(what: str, holds: Callable[[str], bool]) -> None:
            await world.until(f"{what} of every job", lambda: all(map(holds, jobs)), 300.0)

        async def report(job: str, **progress: object) -> None:
            base = {"attempt": 1, "stage": "RL", "step": 3, "totalSteps": STEPS, "state": "Running", "exitCode": None}
            text = json.dumps(base | progress)
            await admin.patch(CONFIG_MAP, at, names.progress(job), {"data": {"progress.json": text}})

        def phase(of: str) -> Callable[[str], bool]:
            return lambda job: ((world.get(RLJOB, at, job) or {}).get("status") or {}).get("phase") == of

        def head(job: str) -> bool:
            pod = world.get(POD, at, f"{names.ray_job(job, 1)}-abcde-head-0") or {}
            return (pod.get("status") or {}).get("phase") == "Running"

        for job in jobs:
            await admin.create(manifest(job, at, **({"retriever": None} if job.startswith("plain") else {})))
        await every("head", head)
        for job in jobs:
            await report(job)
        await every("phase Running", phase("Running"))

        await _quiet(stage)
        before = list(proxy.writes)
        await stage.operator.restart()
        await _looked_at(stage, len(jobs))
        assert proxy.writes[len(before) :] == [], "jobs that need nothing were written to after a restart"

        for job in jobs:
            await report(job, step=STEPS, stage="Done", state="Succeeded", exitCode=0)
            ended = {"jobDeploymentStatus": "Complete", "endTime": "2026-01-01T00:00:00Z"}
            await admin.patch(RAY_JOB, at, names.ray_job(job, 1), {"status": ended}, "status")
        await every("phase Succeeded", phase("Succeeded"))
        await _quiet(stage)
        for job in jobs:
            await admin.delete(RLJOB, at, job, (world.get(RLJOB, at, job) or {})["metadata"]["uid"])
        await every("end", lambda job: world.get(RLJOB, at, job) is None)

        made = Counter(write.rpartition("/")[2] for write in proxy.writes if write.startswith("POST "))
        made.pop("events")
        assert made == {"rayjobs": len(jobs), "jobs": SEARCHING}, "each is made once"
        cost = {job: beyond_children(proxy.writes, job) for job in jobs}
        for kind in ("plain", "search"):
            costs = [cost for job, cost in cost.items() if job.startswith(kind)]
            print(f"{kind}: {sum(costs) / len(costs):.1f} writes beyond its children, at most {max(costs)}")
            assert min(costs) > 0, "the writes were not counted"
            assert sum(costs) / len(costs) <= BEYOND_CHILDREN, cost


async def _quiet(stage: Stage) -> None:
    """Until nothing is written, for longer than a status may be late."""
    while True:
        before = len(stage.proxy.writes)
        await asyncio.sleep(QUIET_SECONDS)
        if len(stage.proxy.writes) == before:
            return


async def _looked_at(stage: Stage, jobs: int) -> None:
    """Until a new operator has looked at every job, and for longer than a status may be late."""
    async with asyncio.timeout(120):
        while True:
            _, text = await stage.operator.page("/metrics")
            values = [line.rpartition(" ")[2] for line in text.splitlines() if line.startswith(LOOKED_AT)]
            if values and float(values[0]) >= jobs:
                break
            await asyncio.sleep(0.5)
    await asyncio.sleep(QUIET_SECONDS)
