"""Importance-sampling weights against their definitions, written out with numpy."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from rljob_trainer.algorithms import normalize_by_mean, tis_weights

pairs = st.tuples(
    st.floats(-6, -0.0078125, width=32, allow_subnormal=False),
    st.floats(-6, -0.0078125, width=32, allow_subnormal=False),
)
batches = st.lists(st.lists(pairs, max_size=5), min_size=1, max_size=5)


def run(samples: list[list[tuple[float, float]]], **options: Any) -> Any:
    sizes = torch.tensor([len(sample) for sample in samples])
    flat = [pair for sample in samples for pair in sample]
    train, rollout = (torch.tensor([pair[which] for pair in flat], dtype=torch.float32) for which in (0, 1))
    index = torch.repeat_interleave(torch.arange(len(samples)), sizes)
    return tis_weights(train, rollout, index, len(samples), **options)


def reference(samples: list[list[tuple[float, float]]], level: str, mode: str, low: float, high: float) -> list[float]:
    weights = []
    for sample in samples:
        logs = [np.float64(a) - np.float64(b) for a, b in sample]
        for log in logs:
            unit = {"token": log, "sequence": sum(logs), "geometric": sum(logs) / len(logs)}[level]
            ratio = math.exp(min(20, max(-20, unit)))
            weights.append(
                {
                    "truncate": min(ratio, high),
                    "clip": min(max(ratio, low), high),
                    "mask": ratio if low <= ratio <= high else 0.0,
                }[mode]
            )
    return weights


@given(batches, st.sampled_from(["token", "sequence", "geometric"]), st.sampled_from(["truncate", "clip", "mask"]))
def test_weights_are_the_definition(samples: list[list[tuple[float, float]]], level: str, mode: str) -> None:
    low, high = 0.5, 2.0
    got = run(samples, level=level, mode=mode, lower_bound=low, upper_bound=high).weights.tolist()
    for value, expected in zip(got, reference(samples, level, mode, low, high), strict=True):
        # Right at a bound, rounding decides whether a unit is masked.
        at_bound = (
            mode == "mask"
            and {value, expected} & {0.0}
            and min(abs(max(value, expected) - low), abs(max(value, expected) - high)) < 1e-3
        )
        assert at_bound or value == pytest.approx(expected, rel=1e-4)


def test_truncation_keeps_small_ratios() -> None:
    result = run([[(-5.0, -1.0), (-1.0, -5.0)]], mode="truncate", lower_bound=0.5, upper_bound=2.0)
    assert result.weights.tolist() == pytest.approx([math.exp(-4), 2.0])
    assert result.stats["above"] == 1
    assert result.stats["below"] == 0


def test_veto_masks_the_whole_sample_and_no_other() -> None:
    samples = [[(-1.0, -1.0), (-15.0, -1.0)], [(-1.0, -1.0)]]
    for level in ("token", "sequence", "geometric"):
        result = run(samples, level=level, veto_threshold=1e-4)
        assert result.weights.tolist() == [0.0, 0.0, 1.0]
        assert result.stats["vetoed"] == 1
        assert result.kept == 1


def test_equal_policies_weigh_one() -> None:
    for level in ("token", "sequence", "geometric"):
        assert run([[(-2.0, -2.0)] * 3, []], level=level, mode="mask").weights.tolist() == [1.0] * 3


def test_weights_carry_no_gradient() -> None:
    train = torch.zeros(2, requires_grad=True)
    result = tis_weights(train, torch.ones(2), torch.tensor([0, 0]), 1)
    assert not result.weights.requires_grad


def test_batch_normalisation_makes_the_mean_one_over_kept_units_of_all_ranks() -> None:
    one = run([[(-1.0, -1.2), (-2.0, -1.0)]], level="token", mode="mask", lower_bound=0.1, upper_bound=1.5)
    two = run([[(-1.0, -3.0)], [(-1.0, -1.1)]], level="token", mode="mask", lower_bound=0.1, upper_bound=1.5)
    total, count = one.kept_sum + two.kept_sum, one.kept + two.kept
    weights = torch.cat([normalize_by_mean(r.weights, total, count) for r in (one, two)])
    assert count == 3
    assert weights[weights > 0].mean().item() == pytest.approx(1.0)
    assert normalize_by_mean(torch.zeros(2), 0.0, 0).tolist() == [0.0, 0.0]


def test_bounds_must_be_in_order() -> None:
    with pytest.raises(ValueError, match="above upper_bound"):
        run([[(-1.0, -1.0)]], lower_bound=3.0, upper_bound=2.0)
    with pytest.raises(ValueError, match="unknown mode"):
        run([[(-1.0, -1.0)]], mode="guess")
