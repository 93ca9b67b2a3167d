"""The whole GRPO step, rollout and training, against TRL's GRPOTrainer on the same work and GPU.

`python -m benchmarks.gpu.grpo_step [--backends fsdp megatron] [--trl FOLDER]`: 32 prompts × 16 samples, 84-token
prompts, 512 new tokens, KL coefficient 0.001, one update a rollout, bfloat16. Ours is the product's own driver with
SGLang colocated. TRL (its own generation, not vLLM) runs in a process of its own, with FOLDER first on its Python path:
its wheels, beside a transformers that it knows.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.gpu.common import SHAPES, emit, model_folder, section
from benchmarks.gpu.runs import PROMPTS, SAMPLES, TINY, job, rate_of, run

PEER = "verl 0.9.1 on an H200, for comparison"
PEER_SHAPE, PEER_RATE = "0.5B", 33.7
"""Samples a second of verl 0.9.1 (FSDP2 and SGLang, tuned) on this work and shape, as measured on one H200."""


def ours(directory: Path, backend: str, options: argparse.Namespace) -> float:
    """Samples a second of the product's driver."""
    name = f"{backend}-{options.shape}"
    target = directory / name
    trainer: dict[str, Any] = {"backend": backend, "maxTokensPerGpu": options.max_tokens}
    spec: dict[str, Any] = {
        "algorithm": {"tis": {"enabled": True}}
    }  # more than TRL does; its numbers tell of the mismatch
    if options.cpu:
        spec |= {name: value for name, value in TINY.items() if name != "trainer"}
        trainer = TINY["trainer"]
    if options.offload:
        spec["placement"] = {"offloadTrainer": True}
    made = job(target, options.shape, rollouts=options.rollouts, trainer=trainer, **spec)
    log = f"grpo-{name}.log"
    return rate_of(run("benchmarks.gpu.measured_run", made, target, log, options.limit, *options.parts))


def trl(directory: Path, options: argparse.Namespace) -> float:
    """Samples a second of TRL."""
    path = f"{options.trl}{os.pathsep}{Path(__file__).parents[2]}"
    command = [sys.executable, "-W", "ignore", "-m", "benchmarks.gpu.trl_grpo",
               str(model_folder(directory / f"model-{options.shape}", options.shape))]  # fmt: skip
    out = Path(os.environ.get("OUT", directory))
    with (out / "grpo-trl.log").open("w") as log:
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=log, text=True, timeout=options.limit,
                              check=False, env=os.environ | {"PYTHONPATH": path})  # fmt: skip
    result = next((line[6:] for line in done.stdout.splitlines() if line.startswith("RESULT")), None)
    if result is None:
        print((out / "grpo-trl.log").read_text()[-3000:], file=sys.stderr, flush=True)
        raise RuntimeError(f"TRL ended with {done.returncode}")
    found = json.loads(result)
    rate = PROMPTS * SAMPLES / float(min(found["steps"][1:]))
    emit("TRL: steps, all", found["steps"], "s")
    emit("TRL: rate", round(rate, 2), "samples/s")
    emit("TRL: versions and rows of a pass", found["about"])
    return rate


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--shape", default="0.5B", choices=list(SHAPES))
    parser.add_argument("--backends", nargs="*", default=["fsdp", "megatron"])
    parser.add_argument("--rollouts", type=int, default=6)
    parser.add_argument("--max-tokens", type=int, default=16384, help="tokens of a forward pass")
    parser.add_argument("--trl", type=Path, help="folder of TRL's wheels, installed; without it TRL is not run")
    parser.add_argument("--folder", type=Path, help="where the model is written, or lies already")
    parser.add_argument("--limit", type=float, default=300.0, help="seconds for each run")
    parser.add_argument(
        "--parts", nargs="*", default=[], help="what is measured of rank and engine after the steps: all"
    )
    parser.add_argument("--offload", action="store_true", help="the trainer is in host memory meanwhile")
    parser.add_argument("--cpu", action="store_true", help="try the script: tiny model, torch engine")
    options = parser.parse_args()
    options.shape = "tiny" if options.cpu else options.shape
    directory = options.folder or Path(tempfile.mkdtemp(prefix="grpo-"))
    directory.mkdir(parents=True, exist_ok=True)
    rates: dict[str, float] = {}
    for backend in options.backends:
        with section(backend):
            rates[backend] = ours(directory, backend, options)
    if options.trl:
        with section("TRL"):
            peer = trl(directory, options)
            if rates:
                emit("whole step ÷ TRL", round(max(rates.values()) / peer, 2), "×", 2.5)
    if rates:
        best = max(rates, key=lambda backend: rates[backend])
        emit("better backend", best)
    if rates and options.shape == PEER_SHAPE:
        emit(f"whole step ÷ {PEER} ({PEER_RATE} samples/s)", round(rates[best] / PEER_RATE, 2), "×", 1.8)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
