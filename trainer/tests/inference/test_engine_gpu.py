"""The engine on a GPU: the same numbers as transformers on the CPU."""

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
import torch
from rljob.types import SamplingParams
from rljob_trainer.inference.torch_engine import TorchEngine, TorchEngineOptions


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA GPU")
@pytest.mark.parametrize("deterministic", [True, False])
async def test_logprobs_on_a_gpu(model_of: Callable[..., Any], tokenizer: Any, deterministic: bool) -> None:
    model = model_of("qwen2", num_key_value_heads=2)
    options = TorchEngineOptions(slots=16, deterministic=deterministic, device="cuda")
    engine = TorchEngine(model.config, tokenizer, 256, options)
    prompts = [list(range(3, 4 + n)) for n in (1, 20, 40, 70)] * 6
    try:
        await engine.load_weights(dict(model.named_parameters()), version=1)

        async def one(seed: int) -> tuple[list[int], list[float], list[int]]:
            async with engine.open(seed) as session:
                first = await session.generate(prompts[seed], SamplingParams(max_new_tokens=30, ignore_eos=True))
                again = await session.generate([5, 6], SamplingParams(max_new_tokens=9, ignore_eos=True))
                return [*prompts[seed], *first.token_ids, 5, 6, *again.token_ids], again.logprobs, again.token_ids

        results = await asyncio.gather(*(one(seed) for seed in range(len(prompts))))
    finally:
        engine.shutdown()
    for ids, logprobs, last in results:
        with torch.no_grad():
            expected = model(torch.tensor([ids])).logits[0].log_softmax(-1)[-len(last) - 1 : -1]
        expected = expected.gather(1, torch.tensor(last)[:, None])[:, 0]
        torch.testing.assert_close(torch.tensor(logprobs), expected, atol=1e-3, rtol=0)
