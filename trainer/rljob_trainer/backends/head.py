"""Log-probabilities and entropy from hidden states, a chunk of tokens at a time: logits of a whole micro batch never
exist. With 152,000 tokens of vocabulary, those of 8192 positions would be 5 GB in float32, and their gradient as much.
"""

from typing import Any

import torch
from torch import Tensor

CHUNK = 2048
"""Tokens whose logits exist at once."""


def chunked_logprobs(
    hidden: Tensor, weight: Tensor, targets: Tensor, temperature: float, entropy: str, chunk: int = CHUNK
) -> tuple[Tensor, Tensor | None]:
    """log softmax(hidden·weightᵀ / temperature) at `targets`, and the entropy there.

    hidden: [N, h]; weight: [V, h], of one dtype; products are taken in it, everything after in float32. targets: [N].
    `entropy`: `none`, `value` or `gradient`. Returns ([N] float32, [N] float32 or None). The backward pass computes the
    logits again; memory is that of one chunk.
    """
    logprobs, entropies = _ChunkedHead.apply(hidden, weight, targets, temperature, entropy, chunk)
    return logprobs, None if entropy == "none" else entropies


class _ChunkedHead(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor, temperature: float, entropy: str, chunk: int
    ) -> tuple[Tensor, Tensor]:
        logprobs, lses, entropies = (
            torch.empty(len(hidden), dtype=torch.float32, device=hidden.device) for _ in range(3)
        )
        for start in range(0, len(hidden), chunk):
            part = slice(start, start + chunk)
            logits = _logits(hidden[part], weight, temperature)
            lse = torch.logsumexp(logits, dim=-1)
            logprobs[part] = logits.gather(1, targets[part, None]).squeeze(1) - lse
            lses[part] = lse
            if entropy != "none":
                entropies[part] = lse - torch.softmax(logits, dim=-1).mul_(logits).sum(dim=-1)
        ctx.save_for_backward(hidden, weight, targets, lses, entropies)
        ctx.temperature, ctx.chunk, ctx.entropy = temperature, chunk, entropy
        if entropy != "gradient":
            ctx.mark_non_differentiable(entropies)
        return logprobs, entropies

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        """With p = softmax(z): ∂log p_y/∂z = 1_y − p and ∂H/∂z = −p·(log p + H)."""
        hidden, weight, targets, lses, entropies = ctx.saved_tensors
        of_logprob, of_entropy = gradients[0], gradients[1] if ctx.entropy == "gradient" else None
        to_hidden = torch.empty_like(hidden)
        to_weight = torch.zeros(weight.shape, dtype=torch.float32, device=weight.device)
        for start in range(0, len(hidden), ctx.chunk):
            part = slice(start, start + ctx.chunk)
            log_p = _logits(hidden[part], weight, ctx.temperature).sub_(lses[part, None])
            p = log_p.exp()
            to_logits = p * -of_logprob[part, None]
            if of_entropy is not None:
                to_logits -= log_p.add_(entropies[part, None]).mul_(p).mul_(of_entropy[part, None])
            to_logits.scatter_add_(1, targets[part, None], of_logprob[part, None])
            scaled = to_logits.div_(ctx.temperature).to(weight.dtype)
            to_hidden[part] = scaled @ weight
            to_weight += scaled.T @ hidden[part]
        return to_hidden, to_weight.to(weight.dtype), None, None, None, None


def _logits(hidden: Tensor, weight: Tensor, temperature: float) -> Tensor:
    logits = (hidden @ weight.T).float()
    return logits if temperature == 1.0 else logits.div_(temperature)
