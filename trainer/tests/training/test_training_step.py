"""A training step on one rank: the loss is the formula, and nothing but the batch decides it."""

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rljob.types import TrainSample
from rljob_api.errors import UserError
from rljob_trainer.training.errors import NonFiniteError
from rljob_trainer.weights import to_tensor, weights_digest

from trainer.tests.training.tiny import demonstrations, samples

Make = Callable[..., Any]


def reference_logprobs(rank: Any, sample: TrainSample) -> list[float]:
    """Log-probs of one sample by a plain forward of the exported model in float64, unpadded."""
    model = rank.backend.state.policy.module.hf
    ids = torch.tensor([[*sample.prompt_ids, *sample.response_ids]])
    with torch.no_grad():
        logits = model(input_ids=ids).logits[0].double()
    start = len(sample.prompt_ids)
    table = logits.log_softmax(-1)
    return [float(table[start + at - 1, token]) for at, token in enumerate(sample.response_ids)]


def gradients(rank: Any) -> dict[str, torch.Tensor]:
    """Gradients of the last step, taken before the optimizer clears them."""
    taken: dict[str, torch.Tensor] = {}
    backend = rank.backend
    original = backend.apply

    def apply(*args: Any) -> Any:
        named = backend.state.policy.module.named_parameters()
        taken.update({name: p.grad.clone() for name, p in named if p.grad is not None})
        return original(*args)

    backend.apply = apply
    return taken


def test_logprobs_are_the_models_own(make_rank: Make) -> None:
    rank = make_rank()
    batch = samples(3, 9)
    for sample, values in zip(batch, rank.compute_logprobs(batch), strict=True):
        expected = [
            value if trained else 0.0
            for value, trained in zip(reference_logprobs(rank, sample), sample.loss_mask, strict=True)
        ]
        assert values == pytest.approx(expected, abs=2e-5)


def test_temperature_applies_to_the_trainers_logprobs(make_rank: Make) -> None:
    hot = make_rank({"rollout": {"sampling": {"temperature": 2.0}}})
    hot.begin_rl()
    sample = replace(samples(3, 1)[0], loss_mask=[1] * len(samples(3, 1)[0].response_ids))
    model = hot.backend.state.policy.module.hf
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([[*sample.prompt_ids, *sample.response_ids]])).logits[0] / 2.0
    table = logits.log_softmax(-1)
    start = len(sample.prompt_ids)
    expected = [float(table[start + at - 1, token]) for at, token in enumerate(sample.response_ids)]
    assert hot.compute_logprobs([sample])[0] == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("aggregation", ["per_sample", "per_token"])
def test_the_reported_loss_is_the_formula(make_rank: Make, aggregation: str) -> None:
    rank = make_rank({"algorithm": {"lossAggregation": aggregation, "tis": {"enabled": True}}})
    rank.begin_rl()
    rank.rl_step(samples(5, 8), 0, 10)  # so that policy and reference differ
    batch, state = samples(6, 11), rank.backend.state
    policy_logprobs = [reference_logprobs(rank, sample) for sample in batch]
    state.policy.module, policy = state.reference, state.policy.module
    reference_values = [reference_logprobs(rank, sample) for sample in batch]
    state.policy.module = policy
    tokens = sum(sum(sample.loss_mask) for sample in batch)
    pg = kl = 0.0
    for sample, ours, theirs in zip(batch, policy_logprobs, reference_values, strict=True):
        for at in (at for at, trained in enumerate(sample.loss_mask) if trained):
            weight = 1 / (sum(sample.loss_mask) * len(batch)) if aggregation == "per_sample" else 1 / tokens
            importance = min(math.exp(ours[at] - sample.rollout_logprobs[at]), 2.0)
            r = theirs[at] - ours[at]
            pg += weight * importance * -sample.advantage  # the ratio is 1: the policy is its own old policy
            kl += weight * min(math.exp(r) - r - 1, 10.0)
    metrics = rank.rl_step(batch, 1, 10)
    assert metrics["pg_loss"] == pytest.approx(pg, abs=1e-4)
    assert metrics["kl"] == pytest.approx(kl, abs=1e-4)
    assert metrics["loss"] == pytest.approx(pg + 0.1 * kl - 0.01 * metrics["entropy"], abs=1e-4)
    assert metrics["ratio_mean"] == 1.0
    assert metrics["ratio_max"] == 1.0
    assert metrics["tokens"] == tokens
    assert metrics["samples"] == 11


CUTS = [
    {"microBatchSize": 1},
    {"microBatchSize": 3},
    {"microBatchSize": 100},
    {"useDynamicBatchSize": True, "maxTokensPerGpu": 30},
    {"useDynamicBatchSize": True, "maxTokensPerGpu": 1},
    {"microBatchSize": 4, "recompute": {"granularity": "full"}},
]
TIS = {"enabled": True, "batchNormalize": True, "mode": "mask", "level": "geometric", "upperBound": 4.0}


@pytest.mark.parametrize("algorithm", [{}, {"lossAggregation": "per_token"}, {"tis": TIS}])
def test_micro_batches_padding_and_order_change_nothing(make_rank: Make, algorithm: dict[str, Any]) -> None:
    results = []
    for number, cut in enumerate(CUTS):
        rank = make_rank({"algorithm": algorithm}, **cut)
        rank.begin_rl()
        taken = gradients(rank)
        batch = samples(7, 13)
        batch = batch[number:] + batch[:number]
        results.append((rank.rl_step(batch, 0, 10), dict(taken)))
    (metrics, grads), others = results[0], results[1:]
    for other_metrics, other_grads in others:
        for name, value in metrics.items():
            assert other_metrics[name] == pytest.approx(value, rel=2e-4, abs=2e-6), name
        for name, value in grads.items():
            torch.testing.assert_close(other_grads[name], value, rtol=1e-3, atol=2e-6)


def test_sft_loss_is_mean_cross_entropy_over_trained_tokens(make_rank: Make) -> None:
    rows = demonstrations(2, 10)
    expected, tokens = 0.0, 0
    rank = make_rank()
    for row in rows:
        with torch.no_grad():
            model = rank.backend.state.policy.module.hf
            table = model(input_ids=torch.tensor([row.input_ids])).logits[0].double().log_softmax(-1)
        for at in range(1, len(row.input_ids)):
            if row.loss_mask[at]:
                expected -= float(table[at - 1, row.input_ids[at]])
                tokens += 1
    metrics = rank.sft_step(rows, 0, 10)
    assert metrics["tokens"] == tokens
    assert metrics["loss"] == pytest.approx(expected / tokens, rel=1e-5)
    again = make_rank(microBatchSize=1).sft_step(rows[::-1], 0, 10)
    assert again["loss"] == pytest.approx(metrics["loss"], rel=1e-6)
    assert again["grad_norm"] == pytest.approx(metrics["grad_norm"], rel=1e-5)


def test_old_logprobs_of_the_same_weights_give_the_same_step(make_rank: Make) -> None:
    batch, digests = samples(4, 8), []
    for given in (False, True):
        rank = make_rank()
        rank.begin_rl()
        old = rank.compute_logprobs(batch) if given else None
        metrics = rank.rl_step(batch, 0, 10, old)
        assert metrics["ratio_max"] == 1.0
        digests.append(weights_digest(rank.full_weights()))
    assert digests[0] == digests[1]


def test_later_steps_of_a_rollout_are_off_policy(make_rank: Make) -> None:
    rank = make_rank()
    rank.begin_rl()
    batch = samples(4, 8)
    old = rank.compute_logprobs(batch)
    rank.rl_step(batch, 0, 10, old)
    metrics = rank.rl_step(batch, 1, 10, old)
    assert metrics["ratio_max"] != 1.0


def test_steps_learn(make_rank: Make) -> None:
    rank = make_rank()
    rows = demonstrations(2, 10)
    losses = [rank.sft_step(rows, step, 30)["loss"] for step in range(30)]
    assert losses[-1] < 0.5 * losses[0]
    rank.begin_rl()
    good = [replace(samples(9, 1)[0], advantage=1.0, loss_mask=[1] * len(samples(9, 1)[0].response_ids))]
    before = sum(rank.compute_logprobs(good)[0])
    for step in range(5):
        rank.rl_step(good, step, 5)
    assert sum(rank.compute_logprobs(good)[0]) > before


def test_two_runs_agree_to_the_bit(make_rank: Make) -> None:
    digests = set()
    for _ in range(2):
        rank = make_rank()
        for step in range(3):
            rank.sft_step(demonstrations(step, 9), step, 3)
        rank.begin_rl()
        for step in range(3):
            rank.rl_step(samples(step, 9), step, 3)
        digests.add(weights_digest(rank.full_weights()))
    assert len(digests) == 1


def test_a_step_that_is_not_finite_is_not_applied(make_rank: Make) -> None:
    rank = make_rank()
    rank.begin_rl()
    before = weights_digest(rank.full_weights())
    batch = samples(4, 6)
    with pytest.raises(NonFiniteError, match=r"RL step 7: not applied"):
        rank.rl_step([*batch, replace(batch[0], advantage=math.nan, loss_mask=[1] * len(batch[0].loss_mask))], 7, 10)
    assert weights_digest(rank.full_weights()) == before
    assert math.isfinite(rank.rl_step(batch, 7, 10)["loss"])


def test_weights_that_were_handed_out_do_not_change(make_rank: Make) -> None:
    rank = make_rank()
    weights = rank.full_weights()
    before = weights_digest(weights)
    rank.sft_step(demonstrations(1, 4), 0, 1)
    assert weights_digest(weights) == before
    assert weights_digest(rank.full_weights()) != before


def test_bfloat16_weights_travel_as_their_bits(make_rank: Make) -> None:
    rank = make_rank()
    rank.backend.dtype = torch.bfloat16
    weights = rank.full_weights()
    assert {array.dtype for array in weights.values()} == {np.dtype(np.uint16)}
    tensors = {name: to_tensor(array) for name, array in weights.items()}
    assert {tensor.dtype for tensor in tensors.values()} == {torch.bfloat16}
    assert weights_digest(tensors) == weights_digest(weights)


def test_custom_importance_function(make_rank: Make, job_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (job_dir / "my_tis.py").write_text(
        "def half(train, rollout, sample, num_samples, factor):\n"
        "    assert len(train) == len(rollout) == len(sample) and num_samples == 6\n"
        "    return train * 0 + factor, {}\n"
        "def wrong(train, rollout, sample, num_samples):\n    return 1.0\n"
    )
    monkeypatch.syspath_prepend(str(job_dir))
    plain = make_rank({"algorithm": {"kl": {}, "entropyCoef": 0}})
    plain.begin_rl()
    loss = plain.rl_step(samples(4, 6), 0, 1)["loss"]
    tis = {"enabled": True, "function": "my_tis:half", "args": {"factor": 0.5}}
    rank = make_rank({"algorithm": {"tis": tis, "kl": {}, "entropyCoef": 0}})
    rank.begin_rl()
    assert rank.rl_step(samples(4, 6), 0, 1)["loss"] == pytest.approx(loss / 2, rel=1e-6)
    rank = make_rank({"algorithm": {"tis": {"enabled": True, "function": "my_tis:wrong"}}})
    rank.begin_rl()
    with pytest.raises(UserError, match=r"tis\.function: my_tis:wrong must return a tensor"):
        rank.rl_step(samples(4, 6), 0, 1)


def test_misuse_is_refused_in_words(make_rank: Make) -> None:
    rank = make_rank({"algorithm": {"tis": {"enabled": True}}})
    with pytest.raises(RuntimeError, match="before begin_rl"):
        rank.rl_step(samples(1, 2), 0, 1)
    rank.begin_rl()
    with pytest.raises(UserError, match="returnLogprobs"):
        rank.rl_step([replace(samples(1, 1)[0], rollout_logprobs=[])], 0, 1)
    with pytest.raises(ValueError, match="empty"):
        rank.rl_step([], 0, 1)
    with pytest.raises(ValueError, match="aligned"):
        rank.rl_step([replace(samples(1, 1)[0], loss_mask=[1] * 50)], 0, 1)
    batch = samples(1, 1)[0]
    with pytest.raises(ValueError, match="2 advantages"):
        rank.rl_step([replace(batch, loss_mask=[1] * len(batch.loss_mask), advantages=[1, 2])], 0, 1)
    with pytest.raises(UserError, match="float16"):
        make_rank({"model": {"dtype": "float16"}})
