"""Advantages from rewards: one per sample, or one per trained token.

Layout of tokens: N values, the trained tokens of all samples in order, with `sizes`, [S] int64, saying how many each
sample has (0 is allowed). Observations are not in it: what a tool wrote is no action, so credit passes over it.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from rljob.algorithms import AdvantageInputs, Advantages
from rljob_api.catalogue.estimators import ESTIMATORS
from torch import Tensor

from rljob_trainer.hooks import load_function

EPSILON = 1e-6
VARIANCE_EPSILON = 1e-8


def grpo_advantages(rewards: Tensor, groups: Tensor, *, normalize_by_std: bool = True) -> Tensor:
    """Group-relative advantages.

    A_i = (r_i − mean(r of i's group)) / (std(r of i's group) + 1e-6), with the sample standard deviation (n − 1), as
    in TRL, verl and slime; without `normalize_by_std` the division is left out.

    rewards: [B] float. groups: [B] int, any labels: samples of one prompt share one. Groups may differ in size and
    lie in any order; each is normalised within itself. Returns [B] float32, computed in float64.

    A group whose rewards are all equal has advantage 0 exactly (rounding in the mean must not be blown up by the
    division), and so has a group of one.

    Sources: Shao et al. 2024 (DeepSeekMath, arXiv 2402.03300) section 4.1; without the division: Liu et al. 2025
    (Dr. GRPO, arXiv 2503.20783).
    """
    _check(rewards, groups)
    values = rewards.to(torch.float64)
    unique, which = torch.unique(groups, return_inverse=True)
    advantages = torch.zeros_like(values)
    for number in range(len(unique)):
        members = which == number
        group = values[members]
        if bool((group == group[0]).all()):
            continue
        centred = group - group.mean()
        advantages[members] = centred / (group.std(correction=1) + EPSILON) if normalize_by_std else centred
    return advantages.to(torch.float32)


def rloo_advantages(rewards: Tensor, groups: Tensor) -> Tensor:
    """Leave-one-out advantages: A_i = r_i − mean(r of the others of i's group) = n/(n − 1)·(r_i − mean of the group).

    Shapes as `grpo_advantages`. A group of one has no others to compare with: its advantage is 0. Equal rewards give
    0 exactly.

    Source: Ahmadian et al. 2024 (arXiv 2402.14740) section 3.2; Kool et al. 2019.
    """
    centred = grpo_advantages(rewards, groups, normalize_by_std=False).to(torch.float64)
    _, which, sizes = torch.unique(groups, return_inverse=True, return_counts=True)
    size = sizes[which].to(torch.float64)
    advantages: Tensor = centred * size / (size - 1).clamp(min=1)
    return advantages.to(torch.float32)


def _check(rewards: Tensor, groups: Tensor) -> None:
    if rewards.shape != groups.shape or rewards.ndim != 1:
        raise ValueError(
            f"rewards {tuple(rewards.shape)} and groups {tuple(groups.shape)} must be vectors of one length"
        )


def token_rewards(rewards: Tensor, sizes: Tensor, kl: Tensor | None = None, kl_coef: float = 0.0) -> Tensor:
    """r_t = −β·kl_t, and the sample's reward on top at its last token.

    rewards: [S]. sizes: [S]. kl: [N] per-token estimates of KL(π ‖ π_ref), `kl_coef` β. Returns [N] float64. The reward
    of a sample without trained tokens has nowhere to go.

    Source: Ouyang et al. 2022 (InstructGPT, arXiv 2203.02155) eq. 2, per token.
    """
    count = int(sizes.sum())
    result = torch.zeros(count, dtype=torch.float64) if kl is None else -kl_coef * kl.to(torch.float64)
    if len(result) != count:
        raise ValueError(f"{len(result)} KL values for {count} tokens")
    last = sizes.cumsum(0)[sizes > 0] - 1
    result[last] += rewards.to(torch.float64)[sizes > 0]
    return result


def discounted_sums(values: Tensor, sizes: Tensor, factor: float) -> Tensor:
    """x_t = v_t + factor·x_{t+1} within each sample. values: [N]. Returns [N]."""
    mask = torch.arange(int(sizes.max()) if len(sizes) else 0) < sizes[:, None]
    table = torch.zeros(mask.shape, dtype=values.dtype)
    table[mask] = values
    for column in range(table.shape[1] - 2, -1, -1):
        table[:, column] += factor * table[:, column + 1]  # nothing but zeros lies beyond a sample's end
    return table[mask]


def whiten(values: Tensor) -> Tensor:
    """(v − mean) / √(var + 1e-8) with the sample variance (n − 1), over all of the batch. values: [N] float64.

    All 0 when there are fewer than two values or they are all equal.
    """
    if len(values) < 2 or bool((values == values[0]).all()):
        return torch.zeros_like(values)
    return (values - values.mean()) * torch.rsqrt(values.var(correction=1) + VARIANCE_EPSILON)


def gae(rewards: Tensor, values: Tensor, sizes: Tensor, *, gamma: float, lam: float) -> tuple[Tensor, Tensor]:
    """Generalised advantage estimation within each sample.

    δ_t = r_t + γ·V_{t+1} − V_t with V = 0 after the last token;  A_t = δ_t + γλ·A_{t+1};  return_t = A_t + V_t.

    rewards: [N] (`token_rewards`). values: [N], the critic's value of the state in which each token was drawn. Returns
    advantages (not yet whitened) and returns, [N] float64 each.

    Source: Schulman et al. 2016 (arXiv 1506.02438) eq. 11 and 16.
    """
    values = values.to(torch.float64)
    following = torch.zeros_like(values)
    following[:-1] = values[1:]
    following[sizes.cumsum(0)[sizes > 0] - 1] = 0.0
    advantages = discounted_sums(rewards + gamma * following - values, sizes, gamma * lam)
    return advantages, advantages + values


# The estimators of the catalogue


def grpo(inputs: AdvantageInputs, *, normalize_by_std: bool = True) -> Tensor:
    """Of S within the group: `grpo_advantages`. Returns [S]."""
    return grpo_advantages(inputs.rewards, inputs.groups, normalize_by_std=normalize_by_std)


def rloo(inputs: AdvantageInputs) -> Tensor:
    """Of S within the group, leaving one out: `rloo_advantages`. Returns [S]."""
    return rloo_advantages(inputs.rewards, inputs.groups)


def reinforce_plus_plus(inputs: AdvantageInputs, *, gamma: float = 1.0) -> Tensor:
    """Σ_{s ≥ t} γ^(s−t)·r_s, whitened over all tokens of the rollout. Returns [N].

    Source: Hu 2025 (REINFORCE++, arXiv 2501.03262).
    """
    return whiten(discounted_sums(inputs.token_rewards, inputs.sizes, gamma)).float()


def reinforce_plus_plus_baseline(inputs: AdvantageInputs) -> Tensor:
    """S − mean(S of the group), whitened over all tokens of the rollout. Returns [N].

    Source: as `reinforce_plus_plus`.
    """
    centred = grpo_advantages(inputs.rewards, inputs.groups, normalize_by_std=False)
    return whiten(torch.repeat_interleave(centred.double(), inputs.sizes)).float()


def ppo_gae(inputs: AdvantageInputs, *, gamma: float = 1.0, lam: float = 1.0) -> Advantages:
    """`gae` of r_t and the critic's values, whitened over all tokens of the rollout; the returns are not. [N] each."""
    if inputs.values is None:
        raise ValueError("gae needs the critic's values")
    advantages, returns = gae(inputs.token_rewards, inputs.values, inputs.sizes, gamma=gamma, lam=lam)
    return Advantages(whiten(advantages).float(), returns.float())


@dataclass(frozen=True)
class TokenAdvantages:
    """[N] float32 each, in the order of samples and tokens."""

    advantages: Tensor
    returns: Tensor | None = None
    """What the critic learns, where there is one."""
    of_samples: Tensor | None = None
    """[S] float32, where a sample's tokens have all the same."""


def estimate_advantages(
    estimator: str,
    rewards: Tensor,
    groups: Tensor,
    sizes: Tensor,
    *,
    normalize_by_std: bool = True,
    gamma: float = 1.0,
    lam: float = 1.0,
    kl: Tensor | None = None,
    kl_coef: float = 0.0,
    values: Tensor | None = None,
    custom: Callable[[AdvantageInputs], Advantages] | None = None,
) -> TokenAdvantages:
    """Advantages of the trained tokens of a whole rollout, by the catalogue's estimator of that name or, in its place,
    by `custom`, without settings.

    With R the reward, the estimator is given the reward per token r_t (`token_rewards`: R at the last token, −β·kl_t at
    each) and S = Σ r_t. A group of one has nothing to be compared with: 0 from estimators that compare, before
    whitening.

    rewards: [S]. groups: [S] int. sizes: [S] int64, trained tokens. kl, values: [N]. A rollout is estimated whole, so
    nothing depends on how it is then shared out to optimizer steps and ranks. Raises ValueError for a name that is not
    in the catalogue.
    """
    entry = ESTIMATORS.get(estimator)
    if entry is None:
        raise ValueError(f"unknown estimator {estimator!r}")
    scores = rewards.to(torch.float64)
    if kl is not None:
        sample = torch.repeat_interleave(torch.arange(len(sizes)), sizes)
        scores = scores.index_add(0, sample, -kl_coef * kl.to(torch.float64))
    inputs = AdvantageInputs(scores, groups, sizes, token_rewards(rewards, sizes, kl, kl_coef), values)
    if custom is not None:
        given = custom(inputs)
    else:
        settings = {"normalize_by_std": normalize_by_std, "gamma": gamma, "lam": lam}
        function = load_function(entry.function, "spec.algorithm.advantageEstimator")
        given = function(inputs, **{name: settings[name] for name in entry.settings})
    result = given if isinstance(given, Advantages) else Advantages(given)
    per_token = entry.per_token if custom is None else result.advantages.shape != rewards.shape
    if per_token:
        return TokenAdvantages(result.advantages, result.returns)
    return TokenAdvantages(
        torch.repeat_interleave(result.advantages, sizes), result.returns, of_samples=result.advantages
    )
