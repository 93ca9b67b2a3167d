"""A manifest as deep as the apiserver takes it is refused, and no other job notices."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from rljob_operator.kube.objects import RLJOB

from e2e.faults.access import Access, Admin
from e2e.faults.kill import Stage, Suite
from e2e.faults.manifest import manifest
from e2e.faults.stories import Cast
from e2e.faults.world import World

pytestmark = [pytest.mark.cluster, pytest.mark.slow, pytest.mark.timeout(300)]
LEVELS = (300, 1200, 5000)
"""Beyond what orjson writes, what it reads, and what Python's json module reads."""


async def create(admin: Admin, namespace: str, levels: int) -> None:
    """As text: no encoder here writes that."""
    job = manifest(f"deep-{levels}", namespace, retriever=None)
    job["spec"]["rollout"]["engineArgs"] = "here"
    text = json.dumps(job).replace('"here"', '{"a":' * levels + "1" + "}" * levels)
    headers = {**admin._headers(), "Content-Type": "application/json"}
    url = admin._server + RLJOB.path(namespace)
    async with admin._session.post(url, data=text, headers=headers, ssl=admin._ssl) as response:
        assert response.status == 201, (await response.text())[:500]


async def test_a_deep_manifest_is_refused_and_stops_nobody(access: Access, tmp_path: Path) -> None:
    async with (
        Admin.connect(access) as admin,
        World(admin).running() as world,
        Stage(Suite(access, world, tmp_path), "deep", seconds=60.0, resync_seconds=5.0) as stage,
    ):
        cast = stage.cast
        for levels in LEVELS:
            await create(admin, stage.namespace, levels)
        await cast.apply(retriever=None)
        await cast.starts(1)
        for levels in LEVELS:
            await cast.until(f"{levels} levels are judged", lambda n=levels: _accepted(cast, n))  # type: ignore[misc]
            told = _accepted(cast, levels)
            assert told["status"] == "False"
            assert told["message"] == "spec.rollout.engineArgs.a: nested more than 64 levels deep"
        await stage.operator.restart()  # and lists it all
        await cast.report(step=5)
        await cast.until("the next step", lambda: cast.status.get("step") == 5)
        assert "the watches ended" not in stage.operator.log.read_text()


def _accepted(cast: Cast, levels: int) -> dict[str, str]:
    job = cast.world.get(RLJOB, cast.namespace, f"deep-{levels}") or {}
    conditions = (job.get("status") or {}).get("conditions") or []
    return next((c for c in conditions if c["type"] == "Accepted"), {})
