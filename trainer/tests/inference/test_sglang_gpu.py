"""SGLang itself, on one GPU: weights from tensors, generation with log-probs, and how generations end."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from rljob.types import SamplingParams

from .contract import check_generation

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.slow,
    pytest.mark.timeout(400),
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU"),
]


@asynccontextmanager
async def started(directory: Path) -> AsyncIterator[tuple[Any, Any, Any]]:
    """A service with an SGLang engine that serves nothing yet, the tokenizer, and a model of random weights."""
    pytest.importorskip("sglang")
    from rljob_api.v1alpha1.job import RLJob
    from rljob_trainer.models import build_model, load_tokenizer
    from rljob_trainer.quickstart.tokenizer import write_tokenizer
    from rljob_trainer.rollout.service import RolloutService

    write_tokenizer(directory / "tokenizer", ("home",), ("Zafo", "Miru"))
    model = {"hiddenSize": 128, "intermediateSize": 256, "numHiddenLayers": 2, "numAttentionHeads": 2}
    rollout = {
        "engine": "sglang",
        "gpusPerEngine": 1,
        "maxContextLength": 64,
        "engineArgs": {
            "attention_backend": "triton",
            "grammar_backend": "none",
            "mm_feature_transport": "cpu",
            "mem_fraction_static": 0.1,
            "cuda_graph_max_bs_decode": 8,
        },
    }
    job = RLJob.model_validate(
        {
            "apiVersion": "rljob.io/v1alpha1",
            "kind": "RLJob",
            "metadata": {"name": "gpu-test"},
            "spec": {
                "model": {
                    "tokenizerPath": "tokenizer",
                    "randomInit": model | {"numKeyValueHeads": 2, "tieWordEmbeddings": False},
                    "dtype": "bfloat16",
                },
                "data": {"train": {"path": "x.jsonl"}},
                "rollout": rollout,
            },
        }
    )
    service = RolloutService(job, directory)
    await service.start()
    try:
        tokenizer = load_tokenizer(job.spec.model, directory)
        yield service, tokenizer, build_model(job.spec.model, directory, tokenizer, seed=3)
    finally:
        await service.shutdown()


async def test_an_engine_serves_what_it_is_given(tmp_path: Path) -> None:
    from rljob.types import Sample

    async with started(tmp_path) as (service, tokenizer, hf):
        await service.update_weights(1, "", {n: p.detach() for n, p in hf.named_parameters()})
        ids = tokenizer.encode("What is Zafo Miru's home?")
        (sample,) = await service.generate(
            [Sample("Q", ids)], SamplingParams(temperature=0.0, max_new_tokens=9, ignore_eos=True)
        )
        assert sample.policy_versions == [1] * 9
        with torch.no_grad():
            logits = hf.cuda()(torch.tensor([ids + sample.response_ids], device="cuda")).logits[0].float()
        mine = torch.log_softmax(logits, -1)[len(ids) - 1 : -1]
        wanted = mine.gather(1, torch.tensor(sample.response_ids, device="cuda")[:, None])[:, 0].cpu()
        torch.testing.assert_close(torch.tensor(sample.logprobs), wanted, atol=0.1, rtol=0.0)


CHAIN = ("What is", "'s", "?", "<search>", " Zafo", "</search>", ")", "<eos>")
"""What the model draws, one token after the other, behind the first."""
ENDS: dict[str, tuple[SamplingParams, int, str, str | None]] = {
    "an end-of-sequence token": (SamplingParams(max_new_tokens=20), 7, "stop", None),
    "one at the last allowed token": (SamplingParams(max_new_tokens=7), 7, "stop", None),
    "the limit": (SamplingParams(max_new_tokens=3), 3, "length", None),
    "a stop string": (SamplingParams(max_new_tokens=20, stop=("</search>",)), 5, "stop", "</search>"),
    "one completed by the last allowed token": (
        SamplingParams(max_new_tokens=5, stop=("</search>",)), 5, "stop", "</search>",
    ),
    "one over two tokens": (SamplingParams(max_new_tokens=20, stop=("?<search>",)), 3, "stop", "?<search>"),
}  # fmt: skip


async def test_generations_end_as_those_of_every_engine(tmp_path: Path) -> None:
    async with started(tmp_path) as (service, tokenizer, hf):
        ids = [tokenizer.convert_tokens_to_ids(token) for token in CHAIN]
        await service.update_weights(1, "", _drawing(hf, ids))
        cases = ENDS | {
            "a token of the job's own": (SamplingParams(max_new_tokens=20, stop_ids=(ids[5],)), 5, "stop", None),
            "that token at the limit": (SamplingParams(max_new_tokens=5, stop_ids=(ids[5],)), 5, "stop", None),
        }
        told = {}
        for name, (sampling, _, _, _) in cases.items():
            greedy = replace(sampling, temperature=0.0)
            async with service.engine.open(0) as session:
                generation = await session.generate(ids[:1], greedy)
            check_generation(generation, greedy, tokenizer, (tokenizer.eos_token_id,))
            told[name] = (generation.token_ids, generation.finish_reason, generation.stop)
        assert told == {name: (ids[1 : 1 + count], reason, stop) for name, (_, count, reason, stop) in cases.items()}


def _drawing(model: Any, ids: list[int]) -> dict[str, torch.Tensor]:
    """Weights with which each of the tokens is followed by the next one."""
    weights = {name: torch.zeros_like(parameter) for name, parameter in model.named_parameters()}
    for name, weight in weights.items():
        if "norm" in name and name.endswith("weight"):
            weight.fill_(1.0)
    for place, (token, following) in enumerate(pairwise(ids)):
        weights["model.embed_tokens.weight"][token, place] = 1.0
        weights["lm_head.weight"][following, place] = 10.0
    return weights
