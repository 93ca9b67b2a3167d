"""Since when a condition has stood as it does: a user, and an alert, reads it off lastTransitionTime."""

from datetime import UTC, datetime, timedelta

import pytest
from rljob_api.contract.reasons import Reason
from rljob_api.v1alpha1.status import Condition
from rljob_operator.kube.objects import rfc3339
from rljob_operator.state.conditions import Conditions

from tests.test_lifecycle import start

THEN = datetime(2026, 1, 1, 12, 0, tzinfo=UTC)
NOW = THEN + timedelta(hours=1)


def stalled(
    status: bool | None, reason: Reason = Reason.WORKER_STALLED, message: str = "", generation: int = 1, *,
    old: tuple[Condition, ...] = (), now: datetime = THEN,
) -> Condition:  # fmt: skip
    conditions = Conditions(old, generation, now)
    conditions.set("Stalled", status, reason, message)
    (made,) = conditions.all()
    return made


@pytest.mark.parametrize("status", [True, False, None])
@pytest.mark.parametrize("reason", [Reason.WORKER_STALLED, Reason.DRIVER_SILENT])
@pytest.mark.parametrize("message", ["", "rank 3"])
@pytest.mark.parametrize("generation", [1, 2])
def test_the_time_stays_while_the_status_does(status, reason, message, generation):
    after = stalled(status, reason, message, generation, old=(stalled(status),), now=NOW)
    assert after.last_transition_time == rfc3339(THEN)
    assert (after.reason, after.message, after.observed_generation) == (str(reason), message, generation)


@pytest.mark.parametrize(
    ("before", "after"), [(a, b) for a in (True, False, None) for b in (True, False, None) if a is not b]
)
def test_the_time_moves_with_the_status_though_nothing_else_changes(before, after):
    changed = stalled(after, old=(stalled(before),), now=NOW)
    assert changed.last_transition_time == rfc3339(NOW)


def test_a_condition_that_was_dropped_begins_anew():
    conditions = Conditions((stalled(True),), 1, NOW)
    conditions.drop("Stalled")
    conditions.set("Stalled", True, Reason.WORKER_STALLED)
    assert conditions.all()[0].last_transition_time == rfc3339(NOW)


async def test_a_jobs_conditions_keep_their_time_while_the_job_goes_on(make_world, manifest):
    world = make_world(manifest())
    await start(world)
    before = {c["type"]: c for c in world.status["conditions"]}
    world.later(3600)
    world.change(lifecycle={"ttlSecondsAfterFinished": 5})
    world.report(step=4, time=rfc3339(world.kube.now))
    await world.settle()
    after = {c["type"]: c for c in world.status["conditions"]}
    assert after.keys() == before.keys()
    for kind, condition in after.items():
        assert condition["observedGeneration"] == 2
        assert condition["status"] == before[kind]["status"], condition
        assert condition["lastTransitionTime"] == before[kind]["lastTransitionTime"], kind
