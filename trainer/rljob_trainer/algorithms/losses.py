"""Losses per token of policy and critic, and the weights with which tokens add up to the loss of a batch.

Policy losses return the loss, whether the clipped branch was taken (bool), and the ratio (detached), each of one shape.
Gradients flow through `logprobs` alone.
"""

from typing import Literal

import torch
from rljob.algorithms import PolicyLossInputs, PolicyLossOutputs
from torch import Tensor

Aggregation = Literal["per_sample", "per_token", "per_prompt", "constant"]


def ppo_clip_loss(
    logprobs: Tensor,
    old_logprobs: Tensor,
    advantages: Tensor,
    *,
    eps_clip: float,
    eps_clip_high: float | None = None,
    dual_clip: float | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """The clipped surrogate objective, per token.

    With ρ = exp(log π − log π_old):  L = −min(ρ·A, clip(ρ, 1 − ε, 1 + ε_high)·A) = max(−ρ·A, −clip(ρ, …)·A);
    with `dual_clip` c > 1, for A < 0 alone:  L = min(L, −c·A).

    logprobs, old_logprobs, advantages: one common shape. Gradients flow through `logprobs` alone. Returns the loss,
    whether the clipped branch was taken (bool), and ρ (detached), each of that shape.

    Sources: Schulman et al. 2017 (PPO, arXiv 1707.06347) eq. 7; clip-higher: Yu et al. 2025 (DAPO, arXiv 2503.14476);
    dual clip: Ye et al. 2020 (arXiv 1912.09729) eq. 5.
    """
    old_logprobs, advantages = old_logprobs.detach(), advantages.detach()
    ratio = torch.exp(logprobs - old_logprobs)
    high = eps_clip if eps_clip_high is None else eps_clip_high
    unclipped = -ratio * advantages
    clipped = -ratio.clamp(1.0 - eps_clip, 1.0 + high) * advantages
    loss = torch.maximum(unclipped, clipped)
    was_clipped = clipped > unclipped
    if dual_clip is not None:
        if dual_clip <= 1.0:
            raise ValueError(f"dual_clip must be above 1, is {dual_clip}")
        bound = -dual_clip * advantages
        lower = (advantages < 0) & (loss > bound)
        loss = torch.where(lower, bound, loss)
        was_clipped = was_clipped | lower
    return loss, was_clipped, ratio.detach()


def gspo_loss(
    logprobs: Tensor,
    old_logprobs: Tensor,
    advantages: Tensor,
    sample: Tensor,
    num_samples: int,
    *,
    eps_clip: float,
    eps_clip_high: float | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """The clipped objective with one ratio per sample: s = exp(mean_t (log π − log π_old)), over its trained tokens.

    L = max(−s·A, −clip(s, 1 − ε, 1 + ε_high)·A) for every token. The value of a token is s; its gradient is that of
    s·π/sg(π), so that advantages may differ within a sample and, where they do not, the sum over tokens has exactly the
    gradient of the paper's sequence objective. Sensible ranges are far narrower than PPO's (the paper: 3e-4, 4e-4).

    logprobs, old_logprobs, advantages: [N]. sample: [N] int64 in [0, num_samples), whole samples. Returns [N] each.

    Source: Zheng et al. 2025 (GSPO, arXiv 2507.18071) eq. 5–7; per token: eq. 13–14 (GSPO-token).
    """
    old_logprobs, advantages = old_logprobs.detach(), advantages.detach()
    difference = (logprobs - old_logprobs).detach()
    zeros = torch.zeros(num_samples, dtype=difference.dtype, device=difference.device)
    counts = zeros.index_add(0, sample, torch.ones_like(difference)).clamp(min=1.0)
    mean = zeros.index_add(0, sample, difference) / counts
    ratio = torch.exp(logprobs - logprobs.detach() + mean[sample])
    high = eps_clip if eps_clip_high is None else eps_clip_high
    unclipped = -ratio * advantages
    clipped = -ratio.clamp(1.0 - eps_clip, 1.0 + high) * advantages
    return torch.maximum(unclipped, clipped), clipped > unclipped, ratio.detach()


def cispo_loss(
    logprobs: Tensor,
    old_logprobs: Tensor,
    advantages: Tensor,
    *,
    eps_clip: float,
    eps_clip_high: float | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """REINFORCE with clipped importance weights: L = −sg(clip(ρ, 1 − ε, 1 + ε_high))·A·log π.

    No token's gradient vanishes: the ratio's weight is bounded, the token is not left out.

    Shapes as `ppo_clip_loss`.

    Source: MiniMax 2025 (MiniMax-M1, CISPO, arXiv 2506.13585) eq. 4–5.
    """
    ratio = torch.exp(logprobs - old_logprobs).detach()
    high = eps_clip if eps_clip_high is None else eps_clip_high
    weight = ratio.clamp(1.0 - eps_clip, 1.0 + high)
    return -weight * advantages.detach() * logprobs, weight != ratio, ratio


# The policy losses of the catalogue


def ppo_clip(
    inputs: PolicyLossInputs, *, eps_clip: float, eps_clip_high: float | None, dual_clip: float | None
) -> PolicyLossOutputs:
    """See `ppo_clip_loss`."""
    tensors = inputs.logprobs, inputs.old_logprobs, inputs.advantages
    return PolicyLossOutputs(
        *ppo_clip_loss(*tensors, eps_clip=eps_clip, eps_clip_high=eps_clip_high, dual_clip=dual_clip)
    )


def gspo(inputs: PolicyLossInputs, *, eps_clip: float, eps_clip_high: float | None) -> PolicyLossOutputs:
    """See `gspo_loss`."""
    tensors = inputs.logprobs, inputs.old_logprobs, inputs.advantages
    return PolicyLossOutputs(
        *gspo_loss(*tensors, inputs.sample, inputs.num_samples, eps_clip=eps_clip, eps_clip_high=eps_clip_high)
    )


def cispo(inputs: PolicyLossInputs, *, eps_clip: float, eps_clip_high: float | None) -> PolicyLossOutputs:
    """See `cispo_loss`."""
    tensors = inputs.logprobs, inputs.old_logprobs, inputs.advantages
    return PolicyLossOutputs(*cispo_loss(*tensors, eps_clip=eps_clip, eps_clip_high=eps_clip_high))


def loss_terms(inputs: PolicyLossInputs, returned: PolicyLossOutputs | Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Loss, clipped and ratio of what a policy loss has returned, with what it has left out. [N] each."""
    outputs = returned if isinstance(returned, PolicyLossOutputs) else PolicyLossOutputs(returned)
    clipped, ratio = outputs.clipped, outputs.ratio
    if ratio is None:
        ratio = torch.exp(inputs.logprobs.detach() - inputs.old_logprobs)
    return outputs.loss, torch.zeros_like(ratio, dtype=torch.bool) if clipped is None else clipped, ratio


def clipped_value_loss(
    values: Tensor, old_values: Tensor, returns: Tensor, *, clip: float | None
) -> tuple[Tensor, Tensor]:
    """½·max((V − G)², (V_clip − G)²) per token, with V_clip = V_old + clamp(V − V_old, −ε, ε); ½·(V − G)² without ε.

    values, old_values, returns: one common shape; gradients flow through `values` alone. Returns the loss and whether
    the clipped branch was taken (bool), each of that shape.

    Source: OpenAI baselines' ppo2; Huang et al. 2022, "The 37 Implementation Details of PPO", detail 9.
    """
    returns, old_values = returns.detach(), old_values.detach()
    plain = (values - returns).square()
    if clip is None:
        return 0.5 * plain, torch.zeros_like(plain, dtype=torch.bool)
    clipped = (old_values + (values - old_values).clamp(-clip, clip) - returns).square()
    return 0.5 * torch.maximum(plain, clipped), clipped > plain


def explained_variance(residual_squares: float, returns: float, return_squares: float, count: float) -> float:
    """1 − Σ(G − V)² / Σ(G − mean G)², from sums over the batch; 0 when the returns do not vary."""
    spread = return_squares - returns**2 / max(count, 1.0)
    return 1.0 - residual_squares / spread if spread > 1e-12 else 0.0


def token_weights(
    sample: Tensor,
    aggregation: Aggregation,
    *,
    sample_tokens: Tensor,
    batch_samples: int,
    batch_tokens: int,
    prompt_tokens: Tensor | None = None,
    batch_prompts: int | None = None,
    constant_length: int | None = None,
) -> Tensor:
    """The weight of each token's loss, so that the batch's loss is Σ weight·loss over all tokens of all ranks.

    - per_sample: mean over a sample's trained tokens, then over samples:    w = 1 / (tokens of the sample · samples)
    - per_token:  mean over the batch's trained tokens:                      w = 1 / tokens
    - per_prompt: mean over the trained tokens of a prompt's samples, then over prompts:
                                                                 w = 1 / (tokens of the prompt's samples · prompts)
    - constant:   sum over tokens by a fixed length (Dr. GRPO):              w = 1 / (constant_length · samples)

    sample: [N] int64, the sample of each token. sample_tokens: [S], trained tokens of each of those samples.
    prompt_tokens: [S], trained tokens of all samples of each sample's prompt. `batch_*` are totals over the **global**
    batch: all micro batches of all ranks. Returns [N] float32.

    A sample without trained tokens contributes 0 and still counts in `batch_samples` (and its prompt in
    `batch_prompts`): leaving it out would make the others' weight depend on it.

    Sources: per_sample: GRPO, arXiv 2402.03300 eq. 3; per_token: DAPO, arXiv 2503.14476; constant: Dr. GRPO,
    arXiv 2503.20783.
    """
    if aggregation == "per_sample":
        denominators = sample_tokens.to(torch.float64) * batch_samples
    elif aggregation == "per_token":
        denominators = torch.full_like(sample_tokens, batch_tokens, dtype=torch.float64)
    elif aggregation == "per_prompt":
        if prompt_tokens is None or batch_prompts is None:
            raise ValueError("per_prompt needs prompt_tokens and batch_prompts")
        denominators = prompt_tokens.to(torch.float64) * batch_prompts
    elif aggregation == "constant":
        if constant_length is None:
            raise ValueError("constant needs constant_length")
        denominators = torch.full_like(sample_tokens, constant_length * batch_samples, dtype=torch.float64)
    else:
        raise ValueError(f"unknown aggregation {aggregation!r}")
    return denominators.clamp(min=1.0).reciprocal()[sample].to(torch.float32)
