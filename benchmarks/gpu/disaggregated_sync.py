"""Weights by NCCL from a rank on one GPU to an engine on others, idle and while it generates; log-probs of both; an
engine that is killed.

`python -m benchmarks.gpu.disaggregated_sync [--shape 0.5B] [--engine-gpus 2] [--killed]`, on a GPU more than the engine
has. `--shape moe`: a small Qwen3-MoE, trained by `megatron`.
"""

import argparse
import os
import statistics
import tempfile
import time
from functools import partial
from pathlib import Path

from benchmarks.gpu.common import SHAPES, emit, manifest, model_folder, section, tell_bandwidth
from benchmarks.gpu.rank_and_engine import (
    generate,
    prompts,
    samples_of,
    start,
    tell_interrupted,
    tell_killed,
    tell_log_probabilities,
)
from benchmarks.gpu.tiny_models import VOCABULARY, write_model


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--shape", default="0.5B", choices=[*SHAPES, "moe"])
    parser.add_argument("--engine-gpus", type=int, default=1)
    parser.add_argument("--killed", action="store_true")
    options = parser.parse_args()
    several, moe = options.engine_gpus, options.shape == "moe"
    os.environ |= {"NCCL_NVLS_ENABLE": "0", "TORCH_SYMM_MEM_DISABLE_MULTICAST": "1", "NVSHMEM_DISABLE_NVLS": "1"}
    import ray

    directory = Path(tempfile.mkdtemp(prefix="sgl-proof-"))
    folder = write_model("qwen3_moe", directory) if moe else model_folder(directory / "model", options.shape)
    vocabulary = VOCABULARY if moe else SHAPES[options.shape]["vocab_size"]
    made = manifest(
        "proof",
        folder,
        algorithm={"kl": {"monitor": False}},
        rollout={"gpusPerEngine": several, "maxContextLength": 1024},
        trainer={"backend": "megatron" if moe else "fsdp"},
    )
    ranks, group, _ = start(made, directory, gpus=1 + several)
    size = sum(bucket.nbytes for bucket in ranks.weights_plan(1 << 29))
    with section("sync"):
        seconds = []
        for version in range(8):
            began = time.monotonic()
            group.update_weights(version)
            seconds.append(time.monotonic() - began)
        emit("weight sync, disaggregated", round(statistics.median(seconds[1:]), 4), "s", 0.25, at_most=True)
        emit("weight sync, all", [round(value, 4) for value in seconds], "s")
        emit("bytes a second over the whole sync", round(size / statistics.median(seconds[1:]) / 1e9, 2), "GB/s")
        tell_bandwidth(0, 1)
    with section("log-probs"):
        tell_log_probabilities(ranks, generate(group, samples_of(prompts(32, vocabulary)), 256))
    with section("throughput"):
        for turn in range(2):
            began = time.monotonic()
            generate(group, samples_of(prompts(512, vocabulary), turn), 512)
            emit("rollout", round(512 * 512 / (time.monotonic() - began)), "tokens/s")
    with section("interrupted"):
        syncs = [partial(group.update_weights, version) for version in (9, 10, 11)]
        tell_interrupted(group, samples_of(prompts(256, vocabulary)), 512, syncs)
    if options.killed:
        with section("killed"):
            tell_killed(group, samples_of(prompts(64, vocabulary)), 512)
    ray.shutdown()
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
