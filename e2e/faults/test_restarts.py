"""etcd and the apiserver are killed under a running job; the CRD is replaced by another version of it."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml
from rljob_operator.kube.objects import RLJOB

from e2e.cluster import control_plane as daemons_of
from e2e.cluster.binaries import program
from e2e.cluster.cluster import Cluster
from e2e.cluster.paths import Paths
from e2e.faults.access import Access, Admin
from e2e.faults.kill import Stage, Suite
from e2e.faults.stories import NAME, STEPS
from e2e.faults.world import World
from e2e.support.crds import wait_established
from e2e.support.kubectl import Kubectl

pytestmark = [pytest.mark.cluster, pytest.mark.slow, pytest.mark.timeout(600)]
CRD = Path(__file__).resolve().parents[2] / "crds/rljobs.yaml"


@asynccontextmanager
async def trained(access: Access, folder: Path, **settings: Any) -> AsyncIterator[Stage]:
    """A job that trains; after the block its driver ends it, and it must be Succeeded in its first attempt."""
    async with (
        Admin.connect(access) as admin,
        World(admin).running() as world,
        Stage(Suite(access, world, folder), "restart", seconds=120.0, **settings) as stage,
    ):
        cast = stage.cast
        await cast.apply(retriever=None)
        await cast.starts(1)
        yield stage
        await cast.report(step=STEPS, stage="Done", state="Succeeded", exitCode=0)
        await cast.ray_job_ends(1)
        await cast.phase("Succeeded")
        assert cast.status["attempt"] == 1
        assert cast.status["failedAttempts"] == 0
        assert stage.operator.alive, stage.operator.log
        assert stage.operator.starts == 1


def restart(name: str) -> None:
    """SIGKILL a daemon of our own cluster, and start it with the flags that it had."""
    cluster = Cluster(Paths.from_env())
    if cluster.mode() is None:
        pytest.skip("its daemons are not ours to kill")
    paths, daemons = cluster.paths, cluster.daemons
    os.kill(next(record.pid for record in daemons.records() if record.name == name), signal.SIGKILL)
    daemons.stop([name])
    if name == "etcd":
        command: list[str | Path] = ["etcd", *daemons_of.etcd_flags(paths)]
    else:
        command = [program(paths, name), *daemons_of.apiserver_flags(paths)]
    for _ in range(10):  # the port may be taken for a moment yet
        daemons.start(name, command)
        time.sleep(1)
        if daemons.running(name):
            break
    kubectl = cluster.kubectl()
    daemons.wait_ready(name, lambda: kubectl.answers("/readyz"))


@pytest.mark.parametrize("name", ["etcd", "kube-apiserver"])
async def test_restarted_under_a_running_job(access: Access, tmp_path: Path, name: str) -> None:
    async with trained(access, tmp_path, resync_seconds=5.0):
        await asyncio.to_thread(restart, name)


def other_version(crd: dict[str, Any]) -> dict[str, Any]:
    """The CRD as an earlier version might have it: without rules across fields, and without the newest fields."""
    schema = crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]
    schema["spec"].pop("x-kubernetes-validations", None)
    for field in ("lastProgressTime", "evaluation", "tokensPerSecond"):
        schema["status"]["properties"].pop(field, None)
    return crd


async def told(stage: Stage, field: str) -> dict[str, Any]:
    """The job's status as the apiserver has it, once it has the field. A watch from before the upgrade is served under
    the old version until it ends, and shows nothing that this version does not know."""
    async with asyncio.timeout(60):
        while True:
            job = await stage.cast.admin.get(RLJOB, stage.namespace, NAME)
            if job and field in (status := job.get("status") or {}):
                return dict(status)
            await asyncio.sleep(0.2)


async def test_crd_upgraded_under_a_running_job(access: Access, control_plane: Kubectl, tmp_path: Path) -> None:
    def apply(crd: dict[str, Any]) -> None:
        control_plane("apply", "--server-side", "--force-conflicts", "-f", "-", stdin=yaml.safe_dump(crd))
        wait_established(control_plane, "rljobs.rljob.io")

    new: dict[str, Any] = yaml.safe_load(CRD.read_text())
    try:
        await asyncio.to_thread(apply, other_version(yaml.safe_load(CRD.read_text())))
        async with trained(access, tmp_path) as stage:
            await asyncio.to_thread(apply, new)
            await stage.cast.report(step=4, reward=0.5, evaluation={"em": 0.25}, tokensPerSecond=120.0)
            status = await told(stage, "tokensPerSecond")
            assert status["tokensPerSecond"] == "120"
            assert status["evaluation"] == {"em": "0.25"}
            assert status["phase"] == "Running"
    finally:
        await asyncio.to_thread(apply, new)
