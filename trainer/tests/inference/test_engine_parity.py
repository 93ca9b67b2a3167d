"""The engine computes what transformers computes."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
import torch
from rljob.types import EngineError, Generation, SamplingParams
from rljob_api.errors import UserError
from rljob_trainer.inference.torch_engine import TorchEngine, TorchEngineOptions

KINDS: list[tuple[str, dict[str, Any]]] = [
    ("qwen2", {}),
    ("qwen2", {"num_key_value_heads": 2, "tie_word_embeddings": True}),
    ("qwen3", {"num_key_value_heads": 1, "head_dim": 16}),
    ("llama", {"attention_bias": True, "mlp_bias": True}),
    (
        "llama",
        {
            "rope_parameters": {
                "rope_type": "llama3",
                "rope_theta": 10000.0,
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 64,
            }
        },
    ),
]


@asynccontextmanager
async def serving(model: Any, tokenizer: Any, context: int = 160, **options: Any) -> AsyncIterator[TorchEngine]:
    engine = TorchEngine(model.config, tokenizer, context, TorchEngineOptions(**{"slots": 8, **options}))
    try:
        await engine.load_weights(dict(model.named_parameters()), version=3)
        yield engine
    finally:
        engine.shutdown()


def reference_logprobs(model: Any, prompt: list[int], generated: list[int], temperature: float = 1.0) -> torch.Tensor:
    with torch.no_grad():
        logits = model(torch.tensor([prompt + generated])).logits[0, len(prompt) - 1 : -1] / temperature
    return logits.log_softmax(-1).gather(1, torch.tensor(generated)[:, None])[:, 0]


@pytest.mark.parametrize("deterministic", [True, False])
@pytest.mark.parametrize(("kind", "changes"), KINDS)
async def test_greedy_is_that_of_transformers(
    kind: str, changes: dict[str, Any], deterministic: bool, model_of: Callable[..., Any], tokenizer: Any
) -> None:
    model = model_of(kind, **changes)
    prompts = [list(range(5, 5 + n)) for n in (1, 7, 16, 17, 45)]
    async with serving(model, tokenizer, deterministic=deterministic) as engine:
        for prompt in prompts:
            async with engine.open(0) as session:
                ours = await session.generate(prompt, SamplingParams(temperature=0, max_new_tokens=40))
            inputs = torch.tensor([prompt])
            theirs = model.generate(
                inputs, attention_mask=torch.ones_like(inputs), do_sample=False, max_new_tokens=40, pad_token_id=0
            )[0, len(prompt) :].tolist()
            assert ours.token_ids == theirs
            assert ours.finish_reason == ("stop" if theirs[-1] == 1 else "length")
            expected = reference_logprobs(model, prompt, theirs)
            torch.testing.assert_close(torch.tensor(ours.logprobs), expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("deterministic", [True, False])
async def test_logprobs_are_of_the_tempered_distribution(model: Any, tokenizer: Any, deterministic: bool) -> None:
    sampling = SamplingParams(temperature=0.7, top_p=0.8, top_k=20, max_new_tokens=60, ignore_eos=True)
    async with serving(model, tokenizer, deterministic=deterministic) as engine, engine.open(5) as session:
        result = await session.generate([9, 8, 7], sampling)
    assert len(result.token_ids) == len(result.logprobs) == len(result.policy_versions) == 60
    assert set(result.policy_versions) == {3}
    expected = reference_logprobs(model, [9, 8, 7], result.token_ids, 0.7)
    torch.testing.assert_close(torch.tensor(result.logprobs), expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("turns", [[[4, 5, 6], [7], list(range(10, 50))], [list(range(3, 36)), [], [8, 9]]])
async def test_a_session_of_turns_is_one_sequence(model: Any, tokenizer: Any, turns: list[list[int]]) -> None:
    """What earlier turns left in the cache gives the log-probabilities of a single forward pass over everything."""
    sequence: list[int] = []
    drawn: list[tuple[int, Generation]] = []
    async with serving(model, tokenizer) as engine, engine.open(11) as session:
        for turn in turns:
            sequence += turn
            result = await session.generate(turn, SamplingParams(max_new_tokens=9, ignore_eos=True))
            drawn.append((len(sequence), result))
            sequence += result.token_ids
    with torch.no_grad():
        logprobs = model(torch.tensor([sequence])).logits[0].log_softmax(-1)
    for start, result in drawn:
        at = torch.arange(start - 1, start - 1 + len(result.token_ids))
        torch.testing.assert_close(
            torch.tensor(result.logprobs), logprobs[at, torch.tensor(result.token_ids)], atol=1e-4, rtol=0
        )


async def test_the_context_ends_the_generation(model: Any, tokenizer: Any) -> None:
    sampling = SamplingParams(max_new_tokens=500, ignore_eos=True)
    async with serving(model, tokenizer, context=50) as engine, engine.open(1) as session:
        first = await session.generate([5] * 20, sampling)
        assert (len(first.token_ids), first.finish_reason) == (30, "length")
        again = await session.generate([6], sampling)
        assert (again.token_ids, again.text, again.finish_reason) == ([], "", "length")
        async with engine.open(1) as other:
            assert (await other.generate([5] * 50, sampling)).token_ids == []


async def test_more_sessions_than_slots_all_finish(model: Any, tokenizer: Any) -> None:
    """Sessions between turns give up their slot when others wait, and get their cache back."""
    sampling = SamplingParams(max_new_tokens=6, ignore_eos=True)
    async with serving(model, tokenizer, slots=2) as engine:

        async def talk(seed: int, barrier: asyncio.Barrier | None) -> list[int]:
            async with engine.open(seed) as session:
                ids = (await session.generate([3 + seed], sampling)).token_ids
                if barrier:  # all sessions are between their turns at once
                    await asyncio.wait_for(barrier.wait(), 60)
                return ids + (await session.generate([4, 5], sampling)).token_ids

        together = await asyncio.gather(*(talk(seed, None) for seed in range(7)))
        barrier = asyncio.Barrier(7)
        waited = await asyncio.gather(*(talk(seed, barrier) for seed in range(7)))
        assert waited == together


async def test_nothing_is_served_before_the_first_weights(model: Any, tokenizer: Any) -> None:
    engine = TorchEngine(model.config, tokenizer, 64)
    try:
        with pytest.raises(EngineError, match="no weights"):
            async with engine.open(0):
                pass
    finally:
        engine.shutdown()


async def test_weights_that_do_not_fit_are_refused_by_name(model: Any, tokenizer: Any) -> None:
    async with serving(model, tokenizer) as engine:
        weights = dict(model.named_parameters())
        missing = {name: value for name, value in weights.items() if name != "model.norm.weight"}
        with pytest.raises(EngineError, match=r"missing \['model.norm.weight'\]"):
            await engine.load_weights(missing, 4)
        with pytest.raises(EngineError, match=r"model.norm.weight: shape \(7,\)"):
            await engine.load_weights(weights | {"model.norm.weight": torch.ones(7)}, 4)
        with pytest.raises(EngineError, match="no weights"):
            async with engine.open(0):
                pass


async def test_a_shut_down_engine_says_so(model: Any, tokenizer: Any) -> None:
    async with serving(model, tokenizer) as engine:
        session = engine.open(0)
        async with session as open_session:
            engine.shutdown()
            with pytest.raises(EngineError, match="shut down"):
                await open_session.generate([5], SamplingParams())
            with pytest.raises(EngineError, match="shut down"):
                engine.check(60)


async def test_a_crash_on_the_thread_reaches_everyone_who_waits(
    model: Any, tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with serving(model, tokenizer) as engine:

        def crash() -> None:
            raise RuntimeError("out of memory")

        monkeypatch.setattr(engine._runner, "step", crash)
        async with engine.open(0) as session:
            with pytest.raises(EngineError, match="out of memory"):
                await session.generate([5], SamplingParams())
            with pytest.raises(EngineError, match="out of memory"):
                await session.generate([5], SamplingParams())


def test_what_cannot_run_is_a_users_sentence(tokenizer: Any, model: Any, model_of: Callable[..., Any]) -> None:
    from transformers import GPT2Config

    with pytest.raises(UserError, match="'gpt2'"):
        TorchEngine(GPT2Config(), tokenizer, 64)
    with pytest.raises(UserError, match=r"9999 tokens .* 512 positions"):
        TorchEngine(model.config, tokenizer, 9999)
    with pytest.raises(UserError, match=r"engineArgs\.slot: .* slots, prefillChunk"):
        TorchEngineOptions.from_args({"slot": 4})
    with pytest.raises(UserError, match=r"engineArgs\.slots: 0 must be"):
        TorchEngineOptions.from_args({"slots": 0})
