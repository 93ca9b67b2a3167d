"""Megatron itself, where there is a GPU: the whole comparison is `python -m benchmarks.gpu.megatron_parity`."""

import importlib.util
from pathlib import Path

import pytest
import torch

from benchmarks.gpu import tiny_models
from benchmarks.gpu.launch import run_ranks

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.slow,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU"),
    pytest.mark.skipif(importlib.util.find_spec("megatron") is None, reason="needs megatron-core"),
]


def test_log_probabilities_are_those_of_transformers(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    folder = tiny_models.write_model("qwen3", tmp_path)
    found = run_ranks(tiny_models.job(folder), [["load", None], ["logprobs", 9, 4]])[0]
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    for sample, mine in zip(tiny_models.samples(9, 4), found, strict=True):
        ids = torch.tensor([sample.prompt_ids + sample.response_ids])
        with torch.no_grad():
            logp = torch.log_softmax(model(ids).logits[0, :-1] / 0.8, -1)
        expected = logp.gather(1, ids[0, 1:, None])[len(sample.prompt_ids) - 1 :, 0]
        trained = torch.tensor(sample.loss_mask, dtype=torch.bool)
        assert len(mine) == len(sample.response_ids)
        if trained.any():
            assert (torch.tensor(mine)[trained] - expected[trained]).abs().mean() < 0.02
