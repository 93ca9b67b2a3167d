"""From per-token losses to one number that is the same however the batch is cut."""

from typing import Literal

import torch
from torch import Tensor

Aggregation = Literal["per_sample", "per_token", "per_prompt", "constant"]


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
