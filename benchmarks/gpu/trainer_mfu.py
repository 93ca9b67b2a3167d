"""How much of the GPU does training use? Model FLOPs utilisation of both backends on packed rows of 4,096 tokens.

The model has the shape of Qwen2.5-1.5B and random weights; a step is supervised fine-tuning with AdamW, clipping and
all. FLOPs of a token are 6·N + 6·layers·width·length (causal attention, forward and backward; recomputation is not
counted), against 790 TFLOP/s, what a bf16 product of 8192³ reaches on an H200. Goal: 0.40 by the better backend.
"""

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.gpu.common import PEAK, kernel_table

LENGTH = 4096
GOAL = 0.40
SHAPES = {
    "0.5B": {
        "hidden_size": 896, "intermediate_size": 4864, "num_hidden_layers": 24, "num_attention_heads": 14,
        "num_key_value_heads": 2,
    },
    "1.5B": {
        "hidden_size": 1536, "intermediate_size": 8960, "num_hidden_layers": 28, "num_attention_heads": 12,
        "num_key_value_heads": 2,
    },
}  # fmt: skip
VOCABULARY = 151936


def write_model(size: str, folder: Path) -> None:
    """A random model of the shape, drawn on the GPU, and a tokenizer that nobody reads text with."""
    import torch
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

    config = Qwen2Config(
        **SHAPES[size], vocab_size=VOCABULARY, max_position_embeddings=32768, rms_norm_eps=1e-6,
        tie_word_embeddings=True, bos_token_id=1, eos_token_id=1, pad_token_id=0,
        rope_parameters={"rope_type": "default", "rope_theta": 1e6},
    )  # fmt: skip
    with torch.device("cuda"):
        model = Qwen2ForCausalLM(config).bfloat16()
    model.save_pretrained(folder)
    tokenizer = Tokenizer(models.WordLevel({"<pad>": 0, "<eos>": 1, "<unk>": 2}, unk_token="<unk>"))
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>"
    ).save_pretrained(folder)


def job(backend: str, model: Path, micro: int, options: dict[str, Any]) -> dict[str, Any]:
    """A fine-tuning job on one GPU."""
    return {
        "apiVersion": "rljob.io/v1alpha1",
        "kind": "RLJob",
        "metadata": {"name": "mfu"},
        "spec": {
            "model": {"path": str(model), "source": {"type": "path"}, "dtype": "bfloat16"},
            "sft": {"dataset": {"path": "x.jsonl"}, "maxSequenceLength": LENGTH, "packing": True},
            "trainer": {
                "backend": backend, "gpusPerReplica": 1, "useDynamicBatchSize": True,
                "maxTokensPerGpu": micro * (LENGTH + 1), **options,
            },
        },
    }  # fmt: skip


def worker(backend: str, folder: Path, size: str, micro: int, rows: int, steps: int, options: dict[str, Any]) -> None:
    """Time steps of a backend in this process; prints tokens per second and the utilisation."""
    import torch
    from rljob_trainer.training.rank import TrainerRank

    from benchmarks.gpu.tiny_models import Demonstration

    trainer = TrainerRank(job(backend, folder, micro, options), str(folder), 0, 1)
    host, port = trainer.rendezvous()
    trainer.setup(host, port)
    trainer.load(None)
    draw = random.Random(0)
    batch = [
        Demonstration([draw.randrange(VOCABULARY) for _ in range(LENGTH + 1)], [1] * (LENGTH + 1)) for _ in range(rows)
    ]
    seconds = []
    metrics: dict[str, float] = {}
    for step in range(steps + 2):
        torch.cuda.synchronize()
        start = time.perf_counter()
        metrics = trainer.sft_step(batch, step, 100)
        torch.cuda.synchronize()
        seconds.append(time.perf_counter() - start)
    best = sorted(seconds[2:])[len(seconds[2:]) // 2]
    shape = SHAPES[size]
    trained: Any = trainer.backend
    inner = trained.model.module if backend == "megatron" else trained.state.policy.module
    parameters = sum(parameter.numel() for parameter in inner.parameters())
    per_token = 6 * parameters + 6 * shape["num_hidden_layers"] * shape["hidden_size"] * LENGTH
    rate = rows * LENGTH / best
    print(
        "RESULT" + json.dumps({
            "tokens_per_second": rate, "mfu": rate * per_token / PEAK, "seconds": best, "first_seconds": seconds[0],
            "parameters": parameters, "memory_gib": torch.cuda.max_memory_allocated() / 2**30,
            "loss": metrics["loss"],
        }),
        flush=True,
    )  # fmt: skip
    if trace := os.environ.get("MFU_PROFILE"):
        table = kernel_table(lambda: trainer.sft_step(batch[:micro], steps + 2, 100))
        Path(f"{trace}.{backend}.txt").write_text(table)


def main() -> int:
    """Prints a JSON line for each backend and the better one's verdict."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", choices=SHAPES, default="1.5B")
    parser.add_argument("--rows", type=int, default=16, help="rows of a step")
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--micro", type=int, nargs="*", default=[4], help="rows of a forward pass; several are tried")
    parser.add_argument("--backends", nargs="*", default=["megatron", "fsdp"])
    parser.add_argument("--options", type=json.loads, default={}, help="JSON that goes into spec.trainer")
    parser.add_argument("--limit", type=float, default=110, help="seconds for one backend")
    parser.add_argument("--folder", type=Path, help="where the model is written, or lies already")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        worker(arguments.worker, arguments.folder, arguments.size, arguments.micro[0], arguments.rows,
               arguments.steps, arguments.options)  # fmt: skip
        return 0
    with tempfile.TemporaryDirectory() as name:
        folder = arguments.folder or Path(name)
        if not (folder / "config.json").exists():
            write_model(arguments.size, folder)
        found: list[float] = []
        for backend in arguments.backends:
            for micro in arguments.micro:
                command = [
                    sys.executable, "-m", "benchmarks.gpu.trainer_mfu", "--worker", backend, "--folder", str(folder),
                    "--size", arguments.size, "--micro", str(micro), "--rows", str(arguments.rows),
                    "--steps", str(arguments.steps), "--options", json.dumps(arguments.options),
                ]  # fmt: skip
                label = f"{backend}.{arguments.size}.micro{micro}"
                try:
                    done = subprocess.run(command, capture_output=True, text=True, timeout=arguments.limit, check=False)
                    text, error = done.stdout, done.stderr
                except subprocess.TimeoutExpired as late:
                    text, error = "", f"no result within {late.timeout:.0f} s"
                result = next((line[6:] for line in text.splitlines() if line.startswith("RESULT")), None)
                if result is None:
                    print(f"{label} broke:\n{error[-3000:]}", file=sys.stderr, flush=True)
                    continue
                values = json.loads(result)
                found.append(values["mfu"])
                print(json.dumps({
                    "name": f"trainer.{label}.tokens_per_second", "value": values["tokens_per_second"],
                    "unit": "tokens/s", "goal": None, "met": None,
                }), flush=True)  # fmt: skip
                print(json.dumps({
                    "name": f"trainer.{label}.mfu", "value": values["mfu"], "unit": "of 790 TFLOP/s", "goal": None,
                    "met": None, **{key: values[key] for key in ("seconds", "first_seconds", "memory_gib", "loss")},
                }), flush=True)  # fmt: skip
    best = max(found, default=0.0)
    print(json.dumps({
        "name": f"trainer.mfu.{arguments.size}", "value": best, "unit": "of 790 TFLOP/s", "goal": GOAL,
        "met": best >= GOAL,
    }), flush=True)  # fmt: skip
    return 0 if best >= GOAL else 1


if __name__ == "__main__":
    sys.exit(main())
