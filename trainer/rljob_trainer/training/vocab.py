"""Log-probabilities and entropy over a vocabulary, whole or cut over tensor-parallel ranks, in chunks of tokens.

Nothing of size [tokens, vocabulary] is ever kept: a chunk's logits are made, reduced to a few numbers per token, and
made again in the backward pass (Megatron-LM, arXiv:1909.08053, section 3, for the parallel softmax; the recomputation
costs one more product with the output matrix).
"""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

LOGITS = 2**29
"""Most logits of one chunk: of fewer, adding up the chunks' gradients of the output matrix begins to cost."""


def chunk_stats(logits: Tensor, targets: Tensor, scale: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Of z = logits·scale, this rank's columns: m = max z, Σ exp(z−m), Σ exp(z−m)·(z−m), and z at the target.

    logits: [n, v] in any float type. targets: [n] int64, a column of this rank; elsewhere outside [0, v), and z is 0.
    Each result is [n] float32.
    """
    z = logits.float() * scale
    top = z.amax(dim=-1)
    shifted = z - top[:, None]
    weights = shifted.exp()
    mine = (targets >= 0) & (targets < logits.shape[1])
    at_target = z.gather(1, targets.where(mine, 0)[:, None])[:, 0].where(mine, 0.0)
    return top, weights.sum(dim=-1), (weights * shifted).sum(dim=-1), at_target


def chunk_grad(
    logits: Tensor, targets: Tensor, log_total: Tensor, entropy: Tensor, grad: Tensor, grad_entropy: Tensor | None,
    scale: float,
) -> Tensor:  # fmt: skip
    """Gradient of Σ grad·log p(target) + grad_entropy·H with respect to logits, in their type.

    With p = exp(z − log_total): ∂ log p_t/∂z_j = 1[j=t] − p_j and ∂H/∂z_j = −p_j·(log p_j + H).
    log_total, entropy, grad, grad_entropy: [n] float32; the last may be None, for zeros.
    """
    log_p = logits.float() * scale - log_total[:, None]
    p = log_p.exp()
    column = torch.arange(logits.shape[1], device=logits.device)
    hit = (column[None, :] == targets[:, None]).float()
    result = (hit - p) * grad[:, None]
    if grad_entropy is not None:
        result -= p * (log_p + entropy[:, None]) * grad_entropy[:, None]
    return (result * scale).to(logits.dtype)


def _kernels(logits: Tensor) -> tuple[Any, Any]:
    """How to compute the two functions above where the logits are; the gradient may take the logits' place."""
    if not logits.is_cuda:
        return chunk_stats, chunk_grad
    from rljob_trainer.training import vocab_kernels

    return vocab_kernels.stats, vocab_kernels.grad_in_place


def _add_product(total: Tensor, left: Tensor, right: Tensor) -> None:
    """total += left @ right, in the type of `total` (float32) however narrow theirs is."""
    if left.is_cuda and left.dtype != total.dtype:
        torch.ops.aten.addmm.dtype_out(total, left, right, total.dtype, out=total)
    else:
        total += left @ right


class _LogProb(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor, scale: float, chunk: int, group: Any
    ) -> tuple[Tensor, Tensor]:
        count = hidden.shape[0]
        logprob, entropy, log_total = (
            torch.empty(count, dtype=torch.float32, device=hidden.device) for _ in range(3)
        )  # fmt: skip
        for start in range(0, count, chunk):
            part = slice(start, start + chunk)
            logits = hidden[part] @ weight.t()
            top, total, weighted, at_target = _kernels(logits)[0](logits, targets[part], scale)
            if group is not None:
                highest = top.clone()
                dist.all_reduce(highest, dist.ReduceOp.MAX, group=group)
                # From this rank's maximum to that of all: z − m = (z − m_r) + (m_r − m).
                shift = top - highest
                factor = shift.exp()
                sums = torch.stack([total * factor, (weighted + shift * total) * factor, at_target])
                dist.all_reduce(sums, group=group)
                top, (total, weighted, at_target) = highest, sums.unbind()
            log_sum = total.log()
            log_total[part] = top + log_sum
            logprob[part] = at_target - top - log_sum
            entropy[part] = log_sum - weighted / total
        ctx.save_for_backward(hidden, weight, targets, log_total, entropy)
        ctx.scale, ctx.chunk = scale, chunk
        ctx.set_materialize_grads(False)  # None where no gradient is wanted of one of the two
        return logprob, entropy

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        hidden, weight, targets, log_total, entropy = ctx.saved_tensors
        of_logprob, of_entropy = grads
        grad = torch.zeros_like(log_total) if of_logprob is None else of_logprob.float().contiguous()
        grad_entropy = None if of_entropy is None else of_entropy.float().contiguous()
        grad_hidden = torch.empty_like(hidden)
        several = hidden.shape[0] > ctx.chunk
        # Chunks are added up in float32: below it, small ones would be lost in the sum.
        grad_weight = torch.zeros_like(weight, dtype=torch.float32) if several else torch.zeros_like(weight)
        for start in range(0, hidden.shape[0], ctx.chunk):
            part = slice(start, start + ctx.chunk)
            logits = hidden[part] @ weight.t()
            delta = _kernels(logits)[1](
                logits, targets[part], log_total[part], entropy[part], grad[part],
                None if grad_entropy is None else grad_entropy[part], ctx.scale,
            )  # fmt: skip
            torch.mm(delta, weight, out=grad_hidden[part])
            if several:
                _add_product(grad_weight, delta.t(), hidden[part])
            else:
                grad_weight = delta.t() @ hidden[part]
        return grad_hidden, grad_weight.to(weight.dtype), None, None, None, None


def vocab_logprobs(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    *,
    temperature: float = 1.0,
    first: int = 0,
    group: Any = None,
    chunk: int | None = None,
) -> tuple[Tensor, Tensor]:
    """log π(target) and entropy under softmax(hidden·weightᵀ / temperature).

    hidden: [N, H]. weight: [v, H], this rank's rows [first, first + v) of the output matrix, padding rows left out.
    targets: [N] int64 over the whole vocabulary. group: the tensor-parallel process group, None for one rank.
    Returns ([N], [N]) float32, the same on all ranks. The gradient with respect to `hidden` is this rank's part: the
    caller adds up the ranks' (`copy_to_tensor_model_parallel_region`).
    """
    chunk = chunk or max(1, LOGITS // max(1, weight.shape[0]))
    result: tuple[Tensor, Tensor] = _LogProb.apply(hidden, weight, targets - first, 1.0 / temperature, chunk, group)
    return result
