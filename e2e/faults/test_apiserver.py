"""The apiserver fails in every way that it can: the job comes to the same end, and the operator asks no more than it
must."""

import asyncio
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from e2e.faults.access import Access, Admin
from e2e.faults.apiserver import Answers, Away, Closed, Refuses, Slow, WatchesDrop, WatchesMute
from e2e.faults.kill import Outcome, Suite
from e2e.faults.proxy import Answer, Call, Fault
from e2e.faults.world import World

pytestmark = [pytest.mark.cluster, pytest.mark.slow, pytest.mark.timeout(900)]
FULL = os.environ.get("RLJOB_FAULTS") == "all"
AWAY_SECONDS = 60.0 if FULL else 6.0


def _write(call: Call) -> bool:
    return call.write > 0


def _watch(call: Call) -> bool:
    return call.watch


FAULTS: dict[str, tuple[Callable[[], Any], str, dict[str, Any]]] = {
    "409 conflict": (lambda: Answers(Answer(409, "Conflict"), 0.3, _write), "retry", {}),
    "429 too many requests": (
        lambda: Answers(Answer(429, "TooManyRequests", {"Retry-After": "1"}), 0.1), "create", {},
    ),
    "500 internal error": (lambda: Answers(Answer(500, "InternalError"), 0.15), "suspend", {}),
    "403 for the claim": (lambda: Refuses("persistentvolumeclaims", Answer(403, "Forbidden"), 2), "create", {}),
    "403 for the first RayJobs": (lambda: Refuses("rayjobs", Answer(403, "Forbidden"), 2), "retry", {}),
    "422 for what is asked of the driver": (lambda: Refuses("job-control", Answer(422, "Invalid"), 2), "suspend", {}),
    "410 watch expired": (lambda: Answers(Answer(410, "Expired"), 0.5, _watch), "scale", {}),
    "connections closed": (lambda: Closed(0.1), "retry", {}),
    "no answer in time": (lambda: Slow(0.05, 2.0), "delete", {"request_timeout_seconds": 1.0}),
    "watches drop": (lambda: WatchesDrop(1.0), "suspend", {}),
    "watches silent": (lambda: WatchesMute(), "fail", {"resync_seconds": 2.0}),
    "away": (lambda: Away((6, 14), AWAY_SECONDS), "delete", {}),
    "clock ten minutes ahead": (Fault, "silent", {"skew": 600.0}),
    "clock ten minutes behind": (Fault, "silent", {"skew": -600.0}),
}  # fmt: skip
MOST = 6
"""So many times the requests of an undisturbed run are enough for any of these; and so many more for each watch that
was broken, since kopf lists anew."""


@pytest.fixture(scope="module")
def outcomes(access: Access, tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Outcome, Any, Suite]]:
    """Each fault's run, all of them at once."""
    return asyncio.run(_run_all(access, tmp_path_factory.mktemp("operators")))


async def _run_all(access: Access, folder: Path) -> dict[str, tuple[Outcome, Any, Suite]]:
    async with Admin.connect(access) as admin, World(admin).running() as world:
        suite = Suite(access, world, folder)
        await suite.learn({story for _, story, _ in FAULTS.values()})

        async def one(name: str) -> tuple[Outcome, Any, Suite]:
            make, story, settings = FAULTS[name]
            fault = make()
            return await suite.endure(story, fault, **settings), fault, suite

        results = await asyncio.gather(*map(one, FAULTS))
    return dict(zip(FAULTS, results, strict=True))


@pytest.mark.parametrize("name", FAULTS)
def test_the_end_is_the_same(outcomes: dict[str, tuple[Outcome, Any, Suite]], name: str) -> None:
    outcome, fault, suite = outcomes[name]
    assert outcome.problem is None
    assert getattr(fault, "given", 1) > 0, "the fault never came"
    story = FAULTS[name][1]
    before = suite.requests[story]
    watches = outcome.by_method["WATCH"]
    print(f"{name}: {outcome.requests} requests ({watches} watches), {before} undisturbed, {outcome.starts} starts")
    assert outcome.requests - 2 * watches <= MOST * before, f"a hot loop: {outcome.by_method}"
    assert outcome.starts <= 4, "the operator ends by itself again and again"
