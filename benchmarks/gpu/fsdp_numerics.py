"""Does the `fsdp` backend compute on a GPU what it computes on the CPU?

A small Qwen2 is fine-tuned on packed rows and then trained by PPO with a critic, first on the CPU in float32 with
padded rows, then on the GPU with variable-length attention and logits in chunks: in float32, and in bfloat16 with each
way of saving memory. Loss within 1e-2 and gradient norm within 3e-2, relative, over all steps.
"""

import argparse
import json
import random
import sys
import tempfile
import time
import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import Any

WORDS = 2003
LOSS, NORM = 1e-2, 3e-2
CASES: dict[str, dict[str, Any]] = {
    "float32": {"dtype": "float32"},
    "bfloat16": {},
    "recompute": {"recompute": {"granularity": "full"}},
    "zero2": {"fsdp": {"reshardAfterForward": False}},
    "cpu_offload": {"fsdp": {"cpuOffload": True}},
    "optimizer_offload": {"offload": True},
}


@dataclass
class PackedRow:
    """Documents one after another."""

    input_ids: list[int]
    loss_mask: list[int]
    lengths: list[int]


def job(*, gpus: int, dtype: str = "bfloat16", offload: bool = False, **trainer: Any) -> dict[str, Any]:
    """A job on a model of about 8 million parameters."""
    shape = {"hiddenSize": 256, "intermediateSize": 704, "numHiddenLayers": 4, "numAttentionHeads": 4,
             "numKeyValueHeads": 2, "maxPositionEmbeddings": 2048, "initializerRange": 0.05}  # fmt: skip
    optimizer = {"lr": 1e-3, "offload": offload}
    return {
        "apiVersion": "rljob.io/v1alpha1", "kind": "RLJob", "metadata": {"name": "numerics"},
        "spec": {
            "model": {"randomInit": shape, "tokenizerPath": "tokenizer", "dtype": dtype},
            "sft": {"dataset": {"path": "x"}, "packing": True, "optimizer": optimizer},
            "algorithm": {"advantageEstimator": "gae", "kl": {"lossCoef": 0.05}, "entropyCoef": 0.01,
                          "tis": {"enabled": True}, "critic": {"optimizer": optimizer}},
            "optimizer": optimizer,
            "rollout": {"sampling": {"temperature": 0.8, "maxResponseLength": 256}},
            "trainer": {"backend": "fsdp", "gpusPerReplica": gpus, "useDynamicBatchSize": True,
                        "maxTokensPerGpu": 2048, "threadsPerRank": 8, **trainer},
        },
    }  # fmt: skip


def batches(seed: int) -> tuple[list[PackedRow], list[Any]]:
    """Demonstrations and rollouts."""
    from rljob.types import TrainSample

    draw = random.Random(seed)
    rows, samples = [], []
    for _ in range(6):
        lengths = [draw.randint(1, 300) for _ in range(draw.randint(1, 4))]
        size = sum(lengths)
        rows.append(PackedRow([draw.randrange(WORDS) for _ in range(size)], [1] * size, lengths))
    for number in range(24):
        prompt, size = draw.randint(4, 60), draw.randint(1, 250)
        samples.append(
            TrainSample(
                prompt_ids=[draw.randrange(WORDS) for _ in range(prompt)],
                response_ids=[draw.randrange(WORDS) for _ in range(size)],
                loss_mask=[1] * size, rollout_logprobs=[-draw.uniform(7, 8)] * size, advantage=0.0, group=number // 4,
                advantages=[draw.gauss(0, 1)] * size, values=[0.0] * size, returns=[draw.random()] * size,
            )
        )  # fmt: skip
    return rows, samples


def train(folder: Path, manifest: dict[str, Any]) -> list[dict[str, float]]:
    """Metrics of three steps of fine-tuning and three of reinforcement learning."""
    from rljob_trainer.training.rank import TrainerRank

    rank = TrainerRank(manifest, str(folder), 0, 1)
    try:
        rank.setup(*rank.rendezvous())
        rank.load(None)
        metrics = [rank.sft_step(batches(step)[0], step, 3) for step in range(3)]
        rank.begin_rl()
        old = rank.compute_logprobs(batches(9)[1])
        return metrics + [rank.rl_step(batches(9)[1], step, 3, old) for step in range(3)]
    finally:
        rank.shutdown()


def worst(metrics: list[dict[str, float]], wanted: list[dict[str, float]], name: str) -> float:
    """Largest relative difference over the steps that have the metric."""
    return max(
        (abs(a[name] - b[name]) / max(abs(b[name]), 1e-2) for a, b in zip(metrics, wanted, strict=True) if name in b),
        default=0.0,
    )


def main() -> int:
    """Prints a JSON line for each comparison; exit code 1 when one fails."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", nargs="*", default=list(CASES), choices=CASES)
    arguments = parser.parse_args()
    import torch
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    good = True
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        words = Tokenizer(models.WordLevel({f"w{i}": i for i in range(WORDS)}, unk_token="w0"))
        PreTrainedTokenizerFast(
            tokenizer_object=words, pad_token="w0", eos_token="w1", unk_token="w0"
        ).save_pretrained(folder / "tokenizer")  # fmt: skip
        wanted = train(folder, job(gpus=0, dtype="float32"))
        for case in arguments.cases:
            started = time.monotonic()
            torch.cuda.reset_peak_memory_stats()
            try:
                metrics = train(folder, job(gpus=1, **CASES[case]))
            except Exception:  # noqa: BLE001 - the other cases are still worth their GPU time
                traceback.print_exc(limit=-5)
                print(json.dumps({"name": f"fsdp.{case}", "value": None, "unit": "", "goal": "runs", "met": False}))
                good = False
                continue
            for metric, limit in (("loss", LOSS), ("grad_norm", NORM), ("value_loss", LOSS), ("entropy", LOSS)):
                value = worst(metrics, wanted, metric)
                good = good and value <= limit
                print(json.dumps({
                    "name": f"fsdp.{case}.{metric}", "value": value, "unit": "largest relative difference from the CPU",
                    "goal": limit, "met": value <= limit,
                }), flush=True)  # fmt: skip
            print(
                f"# {case}: {time.monotonic() - started:.1f} s, {torch.cuda.max_memory_allocated() >> 20} MiB",
                file=sys.stderr, flush=True,
            )  # fmt: skip
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
