"""Advantages from rewards."""

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
    if rewards.shape != groups.shape or rewards.ndim != 1:
        raise ValueError(
            f"rewards {tuple(rewards.shape)} and groups {tuple(groups.shape)} must be vectors of one length"
        )
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
