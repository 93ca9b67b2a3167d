"""When commits are due."""

import itertools

from hypothesis import given
from hypothesis import strategies as st
from rljob_api.v1alpha1.checkpoint import CheckpointSpec
from rljob_trainer.checkpoint.schedule import epochs_done, next_sft_boundary, rollout_due


def spec(**fields: object) -> CheckpointSpec:
    return CheckpointSpec.model_validate(fields)


def cursor(taken: int, rows: int) -> dict[str, int]:
    """As a prompt source stands after `taken` rows: the end of an epoch, not yet the next one's beginning."""
    epoch, position = divmod(taken, rows)
    return {"epoch": epoch - 1, "position": rows, "rows": rows} if taken and not position else {
        "epoch": epoch, "position": position, "rows": rows,
    }  # fmt: skip


@given(rows=st.integers(1, 50), batch=st.integers(1, 20), rollouts=st.integers(1, 60))
def test_a_commit_follows_each_rollout_in_which_an_epoch_ends(rows: int, batch: int, rollouts: int) -> None:
    by_epoch = spec(saveInterval=0, saveAtEpochEnd=True)
    ends = {-(-epoch * rows // batch) for epoch in range(1, rollouts * batch // rows + 1)}
    before: dict[str, int] = {}
    for rollout in range(1, rollouts + 1):
        after = cursor(rollout * batch, rows)
        assert rollout_due(by_epoch, rollout, before, after) is (rollout in ends)
        assert not rollout_due(spec(saveInterval=0), rollout, before, after)
        assert rollout_due(spec(saveInterval=3), rollout, before, after) is (rollout % 3 == 0)
        before = after
    assert epochs_done(before) == rollouts * batch // rows


@given(rows=st.integers(1, 50), batch=st.integers(1, 20), total=st.integers(1, 80), interval=st.integers(0, 10))
def test_sft_stops_at_each_interval_and_epoch(rows: int, batch: int, total: int, interval: int) -> None:
    options = spec(sftSaveInterval=interval, saveAtEpochEnd=True)
    due = {total} | {-(-epoch * rows // batch) for epoch in range(1, total * batch // rows + 1)}
    due |= set(range(interval, total + 1, interval)) if interval else set()
    step, seen = 0, set()
    for _ in itertools.count():
        if step == total:
            break
        boundary = next_sft_boundary(options, step, total, batch, rows)
        assert boundary > step
        seen.add(boundary)
        step = boundary
    assert seen == due
    assert next_sft_boundary(spec(), 0, total, batch, rows) == total
