"""Our numbers against verl's (0.9.1) on random tensors, where the definitions agree. Importing verl takes seconds."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from rljob_trainer.algorithms import (
    cispo_loss,
    clipped_value_loss,
    estimate_advantages,
    gspo_loss,
    kl_estimate,
    normalize_by_mean,
    ppo_clip_loss,
    tis_weights,
    token_weights,
)
from torch import Tensor

pytestmark = pytest.mark.slow
SIZES = torch.tensor([3, 6, 1, 5, 2, 6])
GROUPS = torch.tensor([0, 0, 0, 1, 1, 1])
MASK = torch.arange(int(SIZES.max())) < SIZES[:, None]
SAMPLE = torch.repeat_interleave(torch.arange(len(SIZES)), SIZES)


@pytest.fixture(scope="module")
def verl() -> Any:
    return pytest.importorskip("verl.trainer.ppo.core_algos")


def draw(seed: int, scale: float = 1.0) -> Tensor:
    """[S, T] float64; what lies beyond a sample's end is rubbish on purpose."""
    return torch.randn(MASK.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * scale


def flat(table: Tensor) -> Tensor:
    return table[MASK]


LP, OLD, REF, KL, VALUES = draw(1) - 2, draw(1) - 2 + draw(2, 0.3), draw(3) - 2, draw(4, 0.1), draw(5)
REWARDS = torch.tensor([1.0, 0.0, 0.25, 1.0, 0.0, 0.0], dtype=torch.float64)


def token_level(kl_coef: float) -> Tensor:
    rewards = torch.where(MASK, -kl_coef * KL, 0.0)
    rewards[torch.arange(len(SIZES)), SIZES - 1] += REWARDS
    return rewards


def ours(name: str, kl_coef: float = 0.0, **options: Any) -> Any:
    return estimate_advantages(
        name, REWARDS, GROUPS, SIZES, kl=flat(KL), kl_coef=kl_coef, values=flat(VALUES), **options  # type: ignore[arg-type]
    )  # fmt: skip


@pytest.mark.parametrize("kl_coef", [0.0, 0.2])
@pytest.mark.parametrize("name", ["grpo", "dr_grpo", "rloo", "reinforce_plus_plus", "reinforce_plus_plus_baseline"])
def test_outcome_advantages(verl: Any, name: str, kl_coef: float) -> None:
    rewards, mask, index = token_level(kl_coef), MASK.double(), np.array(GROUPS.tolist())
    if name in ("grpo", "dr_grpo"):
        by_std = name == "grpo"
        theirs, _ = verl.compute_grpo_outcome_advantage(rewards, mask, index, norm_adv_by_std_in_grpo=by_std)
        got = ours("grpo", kl_coef, normalize_by_std=by_std)
    elif name == "reinforce_plus_plus":
        theirs, _ = verl.compute_reinforce_plus_plus_outcome_advantage(rewards, mask, SimpleNamespace(gamma=0.9))
        got = ours(name, kl_coef, gamma=0.9)
    else:
        function = getattr(verl, f"compute_{name}_outcome_advantage")
        theirs, _ = function(rewards, mask, index)
        got = ours(name, kl_coef)
    torch.testing.assert_close(got.advantages.double(), flat(theirs), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("gamma", "lam"), [(1.0, 1.0), (0.99, 0.95), (1.0, 0.0)])
def test_gae(verl: Any, gamma: float, lam: float) -> None:
    theirs, returns = verl.compute_gae_advantage_return(token_level(0.2), VALUES, MASK.double(), gamma, lam)
    got = ours("gae", 0.2, gamma=gamma, lam=lam)
    torch.testing.assert_close(got.advantages.double(), flat(theirs), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(got.returns.double(), flat(returns), rtol=1e-5, atol=1e-5)


def weights(mode: str) -> Tensor:
    return token_weights(
        SAMPLE, mode, sample_tokens=SIZES, batch_samples=len(SIZES), batch_tokens=int(SIZES.sum()), constant_length=8  # type: ignore[arg-type]
    ).double()  # fmt: skip


AGGREGATIONS = {
    "per_sample": "seq-mean-token-mean",
    "per_token": "token-mean",
    "constant": "seq-mean-token-sum-norm",
}


@pytest.mark.parametrize("mode", AGGREGATIONS)
def test_aggregation(verl: Any, mode: str) -> None:
    theirs = verl.agg_loss(draw(6), MASK.double(), AGGREGATIONS[mode], loss_scale_factor=8)
    assert (weights(mode) * flat(draw(6))).sum().item() == pytest.approx(theirs.item(), rel=1e-6)


@pytest.mark.parametrize("mode", AGGREGATIONS)
@pytest.mark.parametrize("name", ["vanilla", "gspo", "cispo"])
def test_policy_losses_and_their_gradients(verl: Any, name: str, mode: str) -> None:
    from verl.workers.config import ActorConfig

    config = ActorConfig(
        strategy="fsdp", rollout_n=1, ppo_micro_batch_size_per_gpu=1, clip_ratio=0.2, clip_ratio_low=0.2,
        clip_ratio_high=0.28, clip_ratio_c=3.0,
    )  # fmt: skip
    config.global_batch_info.update(loss_scale_factor=8)
    advantages = draw(7)
    theirs_lp, ours_lp = LP.clone().requires_grad_(), LP.clone().requires_grad_()
    theirs, _ = verl.get_policy_loss_fn(name)(
        OLD, theirs_lp, advantages, MASK.double(), loss_agg_mode=AGGREGATIONS[mode], config=config
    )
    arguments = flat(ours_lp), flat(OLD), flat(advantages)
    clips = {"eps_clip": 0.2, "eps_clip_high": 0.28}
    if name == "vanilla":
        loss, _, _ = ppo_clip_loss(*arguments, dual_clip=3.0, **clips)
    elif name == "gspo":
        loss, _, _ = gspo_loss(*arguments, SAMPLE, len(SIZES), **clips)
    else:
        loss, _, _ = cispo_loss(*arguments, **clips)
    total = (weights(mode) * loss).sum()
    assert total.item() == pytest.approx(theirs.item(), rel=1e-6)
    total.backward()
    theirs.backward()
    torch.testing.assert_close(ours_lp.grad, theirs_lp.grad, rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize("name", ["k1", "k2", "low_var_kl"])
def test_kl(verl: Any, name: str) -> None:
    torch.testing.assert_close(kl_estimate(LP, REF, name), verl.kl_penalty_forward(LP, REF, name))  # type: ignore[arg-type]


def test_value_loss(verl: Any) -> None:
    new, old, returns = draw(8), draw(9), draw(10)
    theirs, _ = verl.compute_value_loss(new, returns, old, MASK.double(), 0.2, "token-mean")
    loss, _ = clipped_value_loss(flat(new), flat(old), flat(returns), clip=0.2)
    assert loss.mean().item() == pytest.approx(theirs.item(), rel=1e-9)


@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("threshold", ["2.0", "0.5_2.0"])
@pytest.mark.parametrize("level", ["token", "sequence"])
def test_importance_weights(verl: Any, level: str, threshold: str, normalize: bool) -> None:
    from verl.trainer.ppo.rollout_corr_helper import compute_rollout_correction_weights

    if normalize and "_" in threshold:
        pytest.skip("they divide by the mean over all tokens, rejected ones included; we by that over the kept ones")
    theirs, _ = compute_rollout_correction_weights(LP - OLD, MASK.double(), level, threshold, normalize)
    low, high = (float(part) for part in threshold.split("_")) if "_" in threshold else (0.0, float(threshold))
    result = tis_weights(
        flat(LP), flat(OLD), SAMPLE, len(SIZES), level=level, mode="mask" if "_" in threshold else "truncate",  # type: ignore[arg-type]
        lower_bound=low, upper_bound=high,
    )  # fmt: skip
    got = normalize_by_mean(result.weights, result.kept_sum, result.kept) if normalize else result.weights
    torch.testing.assert_close(got.double(), flat(theirs), rtol=1e-5, atol=1e-6)
