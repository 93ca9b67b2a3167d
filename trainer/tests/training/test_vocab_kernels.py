"""The Triton kernels against the plain functions."""

from types import ModuleType

import pytest
import torch
from rljob_trainer.training.vocab import chunk_grad, chunk_stats, vocab_logprobs

from trainer.tests.training.interpreter import DEVICE, GPU, check_interpreted, needs_triton, starts_interpreter

ROWS, COLUMNS = 5, 9001
"""Columns of more than two blocks, the last one not full."""


@starts_interpreter
def test_the_kernels_as_interpreted() -> None:
    check_interpreted(__file__, passing=8)


@pytest.fixture
def kernels() -> ModuleType:
    from rljob_trainer.training import vocab_kernels

    return vocab_kernels


def problem(dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits, one row rising so that every block has a new maximum, and targets, two of them on other ranks."""
    draw = torch.Generator().manual_seed(5)
    logits = 4 * torch.randn(ROWS, COLUMNS, generator=draw)
    logits[1] = torch.linspace(-30, 30, COLUMNS)
    targets = torch.tensor([0, COLUMNS - 1, -3, COLUMNS, 4096])
    return logits.to(DEVICE, dtype), targets.to(DEVICE)


@needs_triton
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("scale", [1.0, 1 / 0.7])
def test_statistics_of_a_chunk(kernels: ModuleType, dtype: torch.dtype, scale: float) -> None:
    logits, targets = problem(dtype)
    for mine, plain in zip(kernels.stats(logits, targets, scale), chunk_stats(logits, targets, scale), strict=True):
        torch.testing.assert_close(mine, plain, rtol=1e-4, atol=1e-4)


@needs_triton
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("of_entropy", [True, False])
def test_gradient_of_a_chunk(kernels: ModuleType, dtype: torch.dtype, of_entropy: bool) -> None:
    logits, targets = problem(dtype)
    top, total, weighted, _ = chunk_stats(logits, targets, 1.3)
    log_total, entropy = top + total.log(), total.log() - weighted / total
    up = torch.linspace(-1, 1, ROWS, device=logits.device)
    of = up.flip(0) if of_entropy else None
    plain = chunk_grad(logits, targets, log_total, entropy, up, of, 1.3)
    mine = kernels.grad_in_place(logits, targets, log_total, entropy, up, of, 1.3)
    assert mine is logits
    torch.testing.assert_close(mine, plain, rtol=1e-4 if dtype == torch.float32 else 1e-2, atol=1e-6)


@pytest.mark.gpu
@pytest.mark.skipif(not GPU, reason="needs a GPU")
@pytest.mark.parametrize("chunk", [17, 64])
def test_log_probabilities_on_a_gpu(chunk: int) -> None:
    """bfloat16 in chunks, sums of the output matrix's gradient in float32, against float64 from the same numbers."""
    draw = torch.Generator("cuda").manual_seed(3)
    hidden = torch.randn(64, 128, generator=draw, device="cuda").bfloat16().requires_grad_()
    weight = (torch.randn(9001, 128, generator=draw, device="cuda") / 8).bfloat16().requires_grad_()
    targets = torch.randint(0, 9001, (64,), generator=draw, device="cuda")
    up, of_entropy = (torch.randn(64, generator=draw, device="cuda") for _ in range(2))
    results = []
    for exact in (False, True):
        hidden.grad = weight.grad = None
        if exact:
            logp = torch.log_softmax(hidden.double() @ weight.double().t() / 0.7, dim=-1)
            chosen, entropy = logp.gather(1, targets[:, None])[:, 0], -(logp.exp() * logp).sum(-1)
        else:
            chosen, entropy = vocab_logprobs(hidden, weight, targets, temperature=0.7, chunk=chunk)
        ((chosen * up).sum() + (entropy * of_entropy).sum()).backward()  # type: ignore[no-untyped-call]
        assert hidden.grad is not None
        assert weight.grad is not None
        results.append([chosen.detach(), entropy.detach(), hidden.grad.clone(), weight.grad.clone()])
    for mine, theirs, close in zip(*results, (2e-2, 2e-2, 2e-1, 5e-2), strict=True):
        torch.testing.assert_close(mine.double(), theirs.double(), rtol=2e-2, atol=close)
