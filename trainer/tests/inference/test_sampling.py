"""Drawing: the distribution drawn from, and which draw belongs to which position."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from rljob_trainer.inference.torch_engine.sampling import draws, row_sampling, sample


def draw(
    logits: torch.Tensor, uniform: torch.Tensor, temperature: float = 1.0, top_p: float = 1.0, top_k: int = -1
) -> tuple[torch.Tensor, torch.Tensor]:
    n = len(uniform)
    rows = row_sampling(np.full(n, temperature, np.float32), np.full(n, top_p), np.full(n, top_k))
    return sample(logits, rows, uniform.double())


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_frequencies_are_the_softmax(temperature: float) -> None:
    logits = torch.tensor([2.0, 0.0, 1.0, -1.0, 0.5])
    n = 20_000
    uniform = (torch.arange(n) + 0.5) / n
    tokens, logprobs = draw(logits.expand(n, -1), uniform, temperature)
    expected = (logits / temperature).softmax(-1)
    torch.testing.assert_close(torch.bincount(tokens, minlength=5) / n, expected, atol=2e-4, rtol=0)
    torch.testing.assert_close(logprobs, expected.log()[tokens])


def test_top_k_and_top_p_keep_the_most_probable() -> None:
    probabilities = torch.tensor([0.1, 0.4, 0.05, 0.3, 0.15])
    n = 1000
    uniform = (torch.arange(n) + 0.5) / n
    logits = probabilities.log().expand(n, -1)
    assert set(draw(logits, uniform, top_k=2)[0].tolist()) == {1, 3}
    assert set(draw(logits, uniform, top_k=1)[0].tolist()) == {1}
    assert set(draw(logits, uniform, top_p=0.69)[0].tolist()) == {1, 3}
    assert set(draw(logits, uniform, top_p=0.71)[0].tolist()) == {1, 3, 4}
    assert set(draw(logits, uniform, top_p=1e-9)[0].tolist()) == {1}
    # top-p is of what top-k left: 0.4 of 0.7 is enough for a half.
    assert set(draw(logits, uniform, top_p=0.5, top_k=2)[0].tolist()) == {1}
    # The log-probability stays that of the whole distribution.
    assert draw(logits, uniform, top_k=1)[1][0].item() == pytest.approx(np.log(0.4), abs=1e-6)


@given(st.integers(0, 2**32 - 1))
def test_a_token_of_no_probability_is_never_drawn(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(8, 33, generator=generator) * 5
    logits[torch.rand(8, 33, generator=generator) < 0.5] = float("-inf")
    logits[:, 7] = 0.0
    uniform = torch.cat((torch.rand(6, generator=generator), torch.tensor([0.0, 1 - 2**-53]).double()))
    tokens, logprobs = draw(logits, uniform)
    assert torch.isfinite(logprobs).all()
    assert torch.isfinite(logits.gather(1, tokens[:, None])).all()


@given(st.integers(0, 2**32 - 1))
def test_a_row_does_not_see_its_neighbours(seed: int) -> None:
    """Greedy, filtered and plain rows in one batch are drawn as on their own."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(32, 41, generator=generator)
    kinds = [(0.0, 1.0, -1), (1.0, 0.7, -1), (0.5, 1.0, 3), (1.0, 1.0, -1)] * 8
    uniform = torch.rand(32, generator=generator).double()
    temperature, top_p, top_k = (np.array(column) for column in zip(*kinds, strict=True))
    tokens, logprobs = sample(logits, row_sampling(temperature.astype(np.float32), top_p, top_k), uniform)
    for i, kind in enumerate(kinds):
        token, logprob = draw(logits[i : i + 1], uniform[i : i + 1], *kind)
        assert token[0] == tokens[i]
        torch.testing.assert_close(logprob[0], logprobs[i], atol=1e-6, rtol=0)


def test_draws_belong_to_positions() -> None:
    assert np.array_equal(draws(5, 100), draws(5, 300)[:100])
    assert not np.array_equal(draws(5, 100), draws(6, 100))
    assert not np.array_equal(draws(2**63 - 1, 100), draws(2**63 - 2, 100))
    values = draws(1, 100_000)
    assert 0 <= values.min() < values.max() < 1
    assert values.mean() == pytest.approx(0.5, abs=0.01)


def test_the_generator_is_the_published_one() -> None:
    """A change of the generator would silently change every run that is repeated from its seed."""
    assert draws(42, 3).tolist() == np.random.Generator(np.random.Philox(key=42)).random(3).tolist()
