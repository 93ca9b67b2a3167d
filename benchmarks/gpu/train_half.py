"""The training half of the GRPO step of `grpo_step`, by itself: where its time goes, kernel by kernel.

`python -m benchmarks.gpu.train_half [--backend fsdp] [--max-tokens 16384 32768] [--profile]`: one rank, no engine; 512
samples of 84 + 512 random tokens, KL against the reference, TIS, one update. `--profile` writes tables of kernels and
operators beside the logs.
"""

import argparse
import json
import os
import random
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.gpu.common import PEAK, SHAPES, emit, kernel_table
from benchmarks.gpu.runs import NEW_TOKENS, PROMPTS, SAMPLES, TINY, job

PROMPT_TOKENS = 84


def batch_of(vocabulary: int, count: int, new_tokens: int) -> list[Any]:
    """Random samples of one length."""
    from rljob.types import TrainSample

    draw = random.Random(0)
    return [
        TrainSample(
            prompt_ids=[draw.randrange(vocabulary) for _ in range(PROMPT_TOKENS)],
            response_ids=[draw.randrange(vocabulary) for _ in range(new_tokens)],
            loss_mask=[1] * new_tokens,
            rollout_logprobs=[-12.0] * new_tokens,
            advantage=draw.gauss(0, 1),
            group=number // SAMPLES,
        )
        for number in range(count)
    ]


def model_flops(shape: dict[str, int], tokens: int, length: float) -> float:
    """Of a step over `tokens`: 6·N + causal attention for the policy, a third of it for the reference (N with the
    output matrix; recomputation does not count)."""
    width, layers, heads = shape["hidden_size"], shape["num_hidden_layers"], shape["num_attention_heads"]
    head = width // heads
    block = width * (width + 2 * shape["num_key_value_heads"] * head + width) + 3 * width * shape["intermediate_size"]
    per_token = 2 * (layers * block + width * shape["vocab_size"]) + 2 * layers * width * length
    return 4 * per_token * tokens


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--shape", default="0.5B", choices=list(SHAPES))
    parser.add_argument("--backend", default="fsdp", choices=["fsdp", "megatron"])
    parser.add_argument(
        "--max-tokens", type=int, nargs="*", default=[16384], help="tokens of a pass, one after another"
    )
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--profile", action="store_true")
    parser.add_argument("--folder", type=Path, help="where the model is written, or lies already")
    parser.add_argument("--cpu", action="store_true", help="try the script: tiny model")
    options = parser.parse_args()
    shape = "tiny" if options.cpu else options.shape
    directory = options.folder or Path(tempfile.mkdtemp(prefix="train-half-"))
    spec: dict[str, Any] = {"trainer": {"backend": options.backend}, "algorithm": {"tis": {"enabled": True}}}
    if options.cpu:
        spec |= {name: dict(value) for name, value in TINY.items()}
    made = job(directory / f"half-{options.backend}", shape, rollouts=10, **spec)

    import torch
    from rljob_trainer.training.rank import TrainerRank

    def wait() -> float:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        return time.perf_counter()

    trainer = TrainerRank(made, str(directory), 0, 1)
    trainer.setup(*trainer.rendezvous())
    trainer.load(None)
    trainer.begin_rl()
    count, new_tokens = (8, 32) if options.cpu else (PROMPTS * SAMPLES, NEW_TOKENS)
    batch = batch_of(SHAPES[shape]["vocab_size"], count, new_tokens)
    tokens = count * (PROMPT_TOKENS + new_tokens)
    flops = model_flops(SHAPES[shape], tokens, PROMPT_TOKENS + new_tokens)
    number = 0
    backend: Any = trainer.backend
    for most in options.max_tokens:
        backend.spec = backend.spec.model_copy(
            update={"trainer": backend.spec.trainer.model_copy(update={"max_tokens_per_gpu": most})}
        )
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()
        seconds = []
        metrics: dict[str, float] = {}
        for _ in range(options.steps):
            start = wait()
            metrics = trainer.rl_step(batch, number, 100)
            seconds.append(wait() - start)
            number += 1
        middle = statistics.median(seconds[1:])
        label = f"{options.backend}-{shape}, {most} tokens a pass"
        emit(f"{label}: steps, all", [round(value, 3) for value in seconds], "s")
        emit(f"{label}: step", round(middle, 3), "s")
        emit(f"{label}: of 790 TFLOP/s", round(flops / middle / PEAK, 3))
        emit(f"{label}: loss, gradient norm", [metrics["loss"], round(metrics["grad_norm"], 6)])
        if torch.cuda.is_available():
            emit(f"{label}: memory, most", round(torch.cuda.max_memory_allocated() / 2**30, 1), "GiB")
    if options.profile:
        out = Path(os.environ.get("OUT", directory))
        part = batch[: max(1, len(batch) // 8)]
        start = wait()
        trainer.rl_step(part, number, 100)
        plain = wait() - start
        table = kernel_table(lambda: trainer.rl_step(part, number + 1, 100))
        (out / f"half-{options.backend}.txt").write_text(
            f"{len(part)} samples took {plain:.3f} s without the profiler\n{table}"
        )
        print(json.dumps({"profile": f"half-{options.backend}.txt"}), flush=True)
    trainer.shutdown()
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
