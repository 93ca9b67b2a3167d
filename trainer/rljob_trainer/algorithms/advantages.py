"""Advantages from rewards, one per sample. Those that differ from token to token are in `returns`."""

import torch
from torch import Tensor

EPSILON = 1e-6


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
