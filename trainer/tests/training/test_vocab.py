"""Log-probabilities in chunks against the plain ones. Over two ranks: test_two_ranks.py."""

import pytest
import torch
from rljob_trainer.training.vocab import vocab_logprobs
from torch import Tensor

TOKENS, WIDTH, VOCABULARY = 11, 6, 13


def problem() -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Hidden states, output matrix, targets, and upstream gradients of log-probabilities and entropies."""
    draw = torch.Generator().manual_seed(3)
    hidden = torch.randn(TOKENS, WIDTH, generator=draw)
    weight = torch.randn(VOCABULARY, WIDTH, generator=draw)
    targets = torch.randint(0, VOCABULARY, (TOKENS,), generator=draw)
    return hidden, weight, targets, torch.randn(TOKENS, generator=draw), torch.randn(TOKENS, generator=draw)


def plain(temperature: float) -> tuple[Tensor, ...]:
    """Log-probabilities, entropies and gradients by log_softmax."""
    hidden, weight, targets, up, up_entropy = problem()
    hidden.requires_grad_()
    weight.requires_grad_()
    logp = torch.log_softmax(hidden @ weight.t() / temperature, dim=-1)
    chosen = logp.gather(1, targets[:, None])[:, 0]
    entropy = -(logp.exp() * logp).sum(-1)
    ((chosen * up).sum() + (entropy * up_entropy).sum()).backward()  # type: ignore[no-untyped-call]
    assert hidden.grad is not None
    assert weight.grad is not None
    return chosen.detach(), entropy.detach(), hidden.grad, weight.grad


@pytest.mark.parametrize("chunk", [1, 4, 11, 100])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_equals_log_softmax_and_its_gradient_whatever_the_chunk(chunk: int, temperature: float) -> None:
    hidden, weight, targets, up, up_entropy = problem()
    hidden.requires_grad_()
    weight.requires_grad_()
    chosen, entropy = vocab_logprobs(hidden, weight, targets, temperature=temperature, chunk=chunk)
    ((chosen * up).sum() + (entropy * up_entropy).sum()).backward()  # type: ignore[no-untyped-call]
    for mine, expected in zip((chosen, entropy, hidden.grad, weight.grad), plain(temperature), strict=True):
        torch.testing.assert_close(mine, expected, rtol=1e-4, atol=1e-5)


def test_nothing_is_trained_on_no_tokens() -> None:
    hidden = torch.zeros(0, WIDTH, requires_grad=True)
    weight = torch.zeros(VOCABULARY, WIDTH, requires_grad=True)
    chosen, _ = vocab_logprobs(hidden, weight, torch.zeros(0, dtype=torch.int64))
    chosen.sum().backward()  # type: ignore[no-untyped-call]
    assert weight.grad is not None
    assert not weight.grad.any()
