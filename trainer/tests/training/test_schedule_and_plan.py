"""Learning rates by step, the cut into micro batches, and errors that cross processes."""

import pickle
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rljob_api.v1alpha1.optimizer import OptimizerSpec
from rljob_trainer.training.errors import NonFiniteError
from rljob_trainer.training.lr_schedule import learning_rate
from rljob_trainer.training.microbatch import Row, collate, plan


def rates(steps: int, **schedule: Any) -> list[float]:
    spec = OptimizerSpec.model_validate({"lr": 2.0, "schedule": schedule})
    return [learning_rate(spec, step, steps) for step in range(steps)]


def test_constant_with_warmup() -> None:
    assert rates(6, warmupSteps=4) == [0.5, 1.0, 1.5, 2.0, 2.0, 2.0]
    assert rates(6, warmupRatio=0.5) == pytest.approx([2 / 3, 4 / 3, 2.0, 2.0, 2.0, 2.0])


def test_decays() -> None:
    assert rates(4, type="linear") == [2.0, 1.5, 1.0, 0.5]
    assert rates(4, type="linear", minLrRate=0.5) == [2.0, 1.75, 1.5, 1.25]
    assert rates(4, type="cosine")[2] == pytest.approx(1.0)
    assert rates(4, type="cosine_with_min_lr", minLrRate=0.1)[2] == pytest.approx(1.1)


@pytest.mark.parametrize(
    ("kind", "low"), [("constant", 0.0), ("linear", 0.0), ("cosine", 0.0), ("cosine_with_min_lr", 0.1)]
)
@pytest.mark.parametrize("warmup", [0, 3])
def test_rates_are_those_of_transformers(kind: str, low: float, warmup: int) -> None:
    """After the warm-up. During it ours are one step ahead: theirs begins with a step of rate 0, which learns
    nothing."""
    import torch
    from transformers import get_scheduler

    name = "constant_with_warmup" if kind == "constant" else kind
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=2.0)
    options = {"min_lr_rate": low} if low else {}
    scheduler = get_scheduler(
        name, optimizer, num_warmup_steps=warmup, num_training_steps=12, scheduler_specific_kwargs=options
    )
    theirs = []
    for _ in range(12):
        theirs.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    ours = rates(12, type=kind, warmupSteps=warmup, minLrRate=low)
    assert ours[warmup:] == pytest.approx(theirs[warmup:], abs=1e-9)
    assert ours[:warmup] == pytest.approx(theirs[1 : warmup + 1])


@given(
    st.sampled_from(["constant", "linear", "cosine", "cosine_with_min_lr"]),
    st.integers(1, 50),
    st.integers(0, 60),
    st.floats(0, 1),
)
def test_rates_stay_between_zero_and_the_peak(kind: str, steps: int, warmup: int, low: float) -> None:
    values = rates(steps, type=kind, warmupSteps=warmup, minLrRate=low)
    assert all(0 <= value <= 2.0 + 1e-12 for value in values)
    after = values[warmup:]
    assert after == sorted(after, reverse=True)


def test_steps_beyond_the_end_keep_the_last_rate_and_negative_ones_are_refused() -> None:
    spec = OptimizerSpec.model_validate({"lr": 2.0, "schedule": {"type": "cosine_with_min_lr", "minLrRate": 0.25}})
    assert learning_rate(spec, 99, 10) == pytest.approx(0.5)
    with pytest.raises(ValueError, match="negative"):
        learning_rate(spec, -1, 10)


@given(st.lists(st.integers(1, 100), max_size=40), st.integers(1, 8), st.none() | st.integers(1, 300))
def test_every_row_is_in_one_pass_and_passes_keep_their_limit(
    lengths: list[int], size: int, tokens: int | None
) -> None:
    batches = plan(lengths, size, tokens)
    assert sorted(row for batch in batches for row in batch) == list(range(len(lengths)))
    for batch in batches:
        if tokens is None:
            assert len(batch) <= size
        else:
            assert len(batch) == 1 or max(lengths[row] for row in batch) * len(batch) <= tokens


def test_collating_points_at_the_position_before_each_trained_token() -> None:
    rows = [Row([5, 6, 7, 8], [0, 0, 1, 1]), Row([9, 4], [1, 1]), Row([3], [1])]
    batch = collate(rows, [0, 1, 2])
    assert batch.input_ids.tolist() == [[5, 6, 7], [9, 0, 0], [0, 0, 0]]
    assert batch.positions.tolist() == [1, 2, 3]
    assert batch.targets.tolist() == [7, 8, 4]
    assert batch.sample.tolist() == [0, 0, 1]
    assert batch.sample_tokens.tolist() == [2, 1, 0]
    assert collate(rows, []).input_ids.shape == (1, 1)


def test_a_failed_step_is_told_across_processes() -> None:
    error = pickle.loads(pickle.dumps(NonFiniteError("RL step 3", float("nan"), 1.5, 2)))
    assert str(error) == "RL step 3: not applied, the weights are as before: loss nan, gradient norm 1.5 (rank 2)"
