"""The reference of the KL: the weights before reinforcement learning, or a model of its own; resumed exactly."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rljob_api.errors import UserError

from trainer.tests.training.tiny import demonstrations, samples

Make = Callable[..., Any]


def test_the_reference_is_the_policy_before_reinforcement_learning(make_rank: Make) -> None:
    rank = make_rank()
    rank.sft_step(demonstrations(1, 6), 0, 1)
    rank.begin_rl()
    assert rank.rl_step(samples(1, 6), 0, 2)["kl"] == 0.0
    assert rank.rl_step(samples(1, 6), 1, 2)["kl"] > 0.0


def test_beginning_twice_keeps_the_reference(make_rank: Make) -> None:
    rank = make_rank()
    rank.begin_rl()
    rank.rl_step(samples(1, 6), 0, 2)
    rank.begin_rl()
    assert rank.rl_step(samples(1, 6), 1, 2)["kl"] > 0.0


@pytest.mark.parametrize("own_model", [False, True])
def test_a_resumed_rank_has_the_same_reference(make_rank: Make, job_dir: Path, own_model: bool) -> None:
    spec: dict[str, Any] = {"seed": 7}
    if own_model:
        make_rank().export_hf(str(job_dir / "reference"))
        spec["checkpoint"] = {"refLoad": "reference"}
    rank = make_rank(spec)
    rank.begin_rl()
    first = rank.rl_step(samples(1, 6), 0, 3)
    assert (first["kl"] > 0.0) is own_model
    (job_dir / "commit").mkdir()
    rank.save(str(job_dir / "commit"))
    expected = rank.rl_step(samples(2, 6), 1, 3)
    resumed = make_rank(spec, commit=str(job_dir / "commit"))
    resumed.begin_rl()
    assert resumed.rl_step(samples(2, 6), 1, 3) == expected


def test_a_policy_without_kl_keeps_no_reference(make_rank: Make) -> None:
    rank = make_rank({"algorithm": {"kl": {"monitor": False}}})
    rank.begin_rl()
    assert rank.backend.state.reference is None
    assert rank.rl_step(samples(1, 6), 0, 1)["kl"] == 0.0


def test_a_commit_of_another_model_is_refused_in_words(make_rank: Make, job_dir: Path) -> None:
    (job_dir / "commit").mkdir()
    make_rank().save(str(job_dir / "commit"))
    shape = {"hiddenSize": 32, "numHiddenLayers": 2, "numAttentionHeads": 2, "numKeyValueHeads": 1}
    with pytest.raises(UserError, match=r"has shape .* where the model needs"):
        make_rank({"model": {"randomInit": shape}}, commit=str(job_dir / "commit"))
    for layers in (1, 5):
        other = {"hiddenSize": 16, "intermediateSize": 24, "numAttentionHeads": 2, "numKeyValueHeads": 1}
        with pytest.raises(UserError, match="another model"):
            make_rank({"model": {"randomInit": {**other, "numHiddenLayers": layers}}}, commit=str(job_dir / "commit"))
