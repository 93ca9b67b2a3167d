"""A seeded sample of what `make faults` does at every write: SIGKILL, start again, the same end."""

import os
from collections import Counter
from pathlib import Path

import pytest

from e2e.faults.__main__ import kill_all
from e2e.faults.access import Access, Admin
from e2e.faults.kill import Suite
from e2e.faults.stories import LIFECYCLES
from e2e.faults.world import World

pytestmark = [pytest.mark.cluster, pytest.mark.slow, pytest.mark.timeout(1500)]
SAMPLE = 44


async def test_killed_at_a_write_the_end_is_the_same(access: Access, tmp_path: Path) -> None:
    seed = int(os.environ.get("RLJOB_FAULTS_SEED", "0"))
    async with Admin.connect(access) as admin, World(admin).running() as world:
        outcomes = await kill_all(
            Suite(access, world, tmp_path), list(LIFECYCLES), size=SAMPLE, seed=seed, at_once=6, storms=["suspend"]
        )
    assert not [f"{outcome.point}: {outcome.problem}" for outcome in outcomes if outcome.problem]
    struck = Counter(outcome.point.story for outcome in outcomes if outcome.point and outcome.struck)
    assert struck.total() >= 40, struck
    assert struck.keys() == LIFECYCLES.keys(), "each lifecycle was struck"
