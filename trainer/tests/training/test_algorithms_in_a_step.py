"""Every algorithm of the API in real training steps: nothing but the batch decides them, and they resume exactly."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from rljob.types import Sample, TrainSample
from rljob_api.v1alpha1.algorithm import AlgorithmSpec
from rljob_trainer.rollout.advantages import Credit, train_sample
from rljob_trainer.rollout.samples import advantages_of
from rljob_trainer.weights import weights_digest

from trainer.tests.training.test_training_step import gradients
from trainer.tests.training.tiny import samples

Make = Callable[..., Any]
ALGORITHMS: dict[str, dict[str, Any]] = {
    "rloo": {"advantageEstimator": "rloo"},
    "reinforce++": {"advantageEstimator": "reinforce_plus_plus", "kl": {"rewardCoef": 0.1, "estimator": "k1"}},
    "reinforce++ baseline": {"advantageEstimator": "reinforce_plus_plus_baseline", "kl": {"estimator": "k2"}},
    "ppo": {"advantageEstimator": "gae", "gaeLambda": 0.95, "gamma": 0.99, "critic": {"optimizer": {"lr": 1e-2}}},
    "dr. grpo": {"normalizeByStd": False, "lossAggregation": "constant"},
    "per prompt": {"lossAggregation": "per_prompt"},
    "gspo": {"policyLoss": "gspo", "epsClip": 3e-4, "epsClipHigh": 4e-4},
    "cispo": {"policyLoss": "cispo", "lossAggregation": "per_token"},
    "dual clip": {"dualClip": 1.5},
    "unbiased kl": {"kl": {"lossCoef": 0.1, "unbiased": True, "estimator": "k3"}},
    "kl in the reward": {"kl": {"rewardCoef": 0.2}},
    "icepop": {"tis": {"enabled": True, "mode": "mask", "lowerBound": 0.5, "vetoThreshold": 1e-4}},
    "sequence tis": {"tis": {"enabled": True, "level": "sequence", "batchNormalize": True}},
    "geometric tis": {"tis": {"enabled": True, "level": "geometric", "mode": "clip", "lowerBound": 0.9}},
}


def rollout(seed: int, count: int) -> list[Sample]:
    """Scored samples in groups of two to four."""
    made = []
    for number, sample in enumerate(samples(seed, count)):
        mask = sample.loss_mask if number == 1 else [1, *sample.loss_mask[1:]]
        made.append(
            Sample(
                prompt="", prompt_ids=sample.prompt_ids, response_ids=sample.response_ids, loss_mask=mask,
                logprobs=[value if m else 0.0 for value, m in zip([-3.0] * len(mask), mask, strict=True)],
                group=number // 3 if number < 9 else 3, reward=float(number % 3 == 0), status="completed",
            )
        )  # fmt: skip
    return made


def batch_of(rank: Any, spec: dict[str, Any], seed: int = 7, count: int = 13) -> list[TrainSample]:
    made = rollout(seed, count)
    credits = advantages_of(made, AlgorithmSpec.model_validate(spec), rank.token_signals)
    return [train_sample(made[number], credit) for number, credit in credits.items()]


@pytest.mark.parametrize("name", ALGORITHMS)
def test_micro_batches_packing_and_order_change_nothing(make_rank: Make, name: str) -> None:
    results = []
    for turn, cut in enumerate([{"microBatchSize": 1}, {"microBatchSize": 5}, {"useDynamicBatchSize": True}]):
        rank = make_rank({"algorithm": ALGORITHMS[name], "sft": {"packing": True}}, **cut)
        rank.backend.packed = turn == 2
        rank.begin_rl()
        batch = batch_of(rank, ALGORITHMS[name])
        old = rank.compute_logprobs(batch)
        rank.rl_step(batch, 0, 10, old)  # from here on off policy, and away from the reference
        taken = gradients(rank)
        turned = batch[turn:] + batch[:turn]
        results.append((rank.rl_step(turned, 1, 10, old[turn:] + old[:turn]), dict(taken)))
    (metrics, grads), others = results[0], results[1:]
    for other_metrics, other_grads in others:
        assert other_metrics.keys() == metrics.keys()
        for key, value in metrics.items():
            assert other_metrics[key] == pytest.approx(value, rel=2e-3, abs=2e-5), key
        for key, value in grads.items():
            torch.testing.assert_close(other_grads[key], value, rtol=5e-3, atol=2e-5)


@pytest.mark.parametrize("name", ALGORITHMS)
def test_the_first_step_has_ratio_one_and_no_kl(make_rank: Make, name: str) -> None:
    rank = make_rank({"algorithm": ALGORITHMS[name]})
    rank.begin_rl()
    batch = batch_of(rank, ALGORITHMS[name])
    metrics = rank.rl_step(batch, 0, 10, rank.compute_logprobs(batch))
    assert metrics["ratio_max"] == 1.0
    assert metrics["kl"] == 0.0
    assert metrics["clipfrac"] == 0.0
    assert metrics["grad_norm"] > 0.0


def test_the_critic_learns_and_is_resumed_exactly(make_rank: Make, job_dir: Path) -> None:
    spec = {"algorithm": ALGORITHMS["ppo"]}
    rank = make_rank(spec)
    rank.begin_rl()
    signals = rank.token_signals([train_sample(sample, Credit(0.0)) for sample in rollout(7, 5)])
    assert all(value == 0.0 for signal in signals for value in signal.values)  # the head starts at 0
    losses = [rank.rl_step(batch_of(rank, spec["algorithm"]), step, 20)["value_loss"] for step in range(8)]
    assert losses[-1] < 0.8 * losses[0]
    (job_dir / "commit").mkdir()
    rank.save(str(job_dir / "commit"))
    batch = batch_of(rank, spec["algorithm"], seed=9)
    expected = rank.rl_step(batch, 8, 20)
    assert expected["critic_grad_norm"] > 0.0
    resumed = make_rank(spec, commit=str(job_dir / "commit"))
    resumed.begin_rl()
    assert batch_of(resumed, spec["algorithm"], seed=9) == batch
    assert resumed.rl_step(batch, 8, 20) == expected
    assert weights_digest(resumed.full_weights()) == weights_digest(rank.full_weights())


def test_a_step_is_applied_to_policy_and_critic_or_to_neither(make_rank: Make) -> None:
    spec = {"algorithm": ALGORITHMS["ppo"]}
    rank = make_rank(spec)
    rank.begin_rl()
    batch = batch_of(rank, spec["algorithm"])
    critic = rank.backend.state.critic.module
    weights = lambda: {name: value.clone() for name, value in critic.named_parameters()}  # noqa: E731
    before = weights()
    for broken in ("advantages", "returns"):
        bad = [replace(sample, **{broken: [float("nan")] * len(sample.returns or [])}) for sample in batch]
        with pytest.raises(RuntimeError, match="RL step 0"):
            rank.rl_step(bad, 0, 10)
        assert all(torch.equal(value, before[name]) for name, value in weights().items())
    good = make_rank(spec)
    good.begin_rl()
    assert rank.rl_step(batch, 0, 10) == good.rl_step(batch, 0, 10)


def test_a_penalty_in_the_reward_is_the_kl_of_the_tokens(make_rank: Make) -> None:
    rank = make_rank({"algorithm": {"kl": {"rewardCoef": 0.5, "estimator": "k1"}}})
    rank.begin_rl()
    batch = [train_sample(sample, Credit(1.0)) for sample in rollout(7, 6)]
    before = rank.compute_logprobs(batch)
    for signal in rank.token_signals(batch):
        assert all(value == 0.0 for value in signal.kl)
    rank.rl_step(batch, 0, 10)
    after = rank.compute_logprobs(batch)
    for sample, signal, new, old in zip(batch, rank.token_signals(batch), after, before, strict=True):
        expected = [a - b for a, b, trained in zip(new, old, sample.loss_mask, strict=True) if trained]
        assert signal.kl == pytest.approx(expected, abs=1e-5)
