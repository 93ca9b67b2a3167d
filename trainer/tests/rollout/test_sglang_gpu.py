"""SGLang itself: weights from tensors, generation with log-probs, on one GPU."""

from pathlib import Path

import pytest
import torch

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.slow,
    pytest.mark.timeout(400),
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU"),
]


async def test_an_engine_serves_what_it_is_given(tmp_path: Path) -> None:
    pytest.importorskip("sglang")
    from rljob_trainer.config.job import RLJob
    from rljob_trainer.models import build_model, load_tokenizer
    from rljob_trainer.quickstart.tokenizer import write_tokenizer
    from rljob_trainer.rollout.service import RolloutService
    from rljob_trainer.rollout.types import Sample, SamplingParams

    write_tokenizer(tmp_path / "tokenizer", ("home",), ("Zafo", "Miru"))
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
                    "randomInit": model | {"numKeyValueHeads": 2},
                    "dtype": "bfloat16",
                },
                "data": {"train": {"path": "x.jsonl"}},
                "rollout": rollout,
            },
        }
    )
    service = RolloutService(job, tmp_path)
    await service.start()
    try:
        tokenizer = load_tokenizer(job.spec.model, tmp_path)
        hf = build_model(job.spec.model, tmp_path, tokenizer, seed=3)
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
    finally:
        await service.shutdown()
