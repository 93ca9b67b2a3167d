"""Engines over several of the trainer's own GPUs: weights by CUDA IPC from each GPU's rank, then sleep and wake.

`python -m benchmarks.gpu.colocated_engines [--engine-gpus 2] [--cycles 10]`
"""

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path

from benchmarks.gpu.common import ENGINE_ARGS, SHAPES, emit, manifest, model_folder, section
from benchmarks.gpu.rank_and_engine import generate, prompts, samples_of, start, tell_log_probabilities


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--shape", default="0.5B", choices=list(SHAPES))
    parser.add_argument("--engine-gpus", type=int, default=2)
    parser.add_argument("--cycles", type=int, default=10)
    parser.add_argument("--engine-args", type=json.loads, default={}, help="more of them, as JSON")
    options = parser.parse_args()
    import ray

    size = options.engine_gpus
    directory = Path(tempfile.mkdtemp(prefix="colocated-"))
    made = manifest(
        "colocated",
        model_folder(directory / "model", options.shape),
        algorithm={"kl": {"monitor": False}},
        rollout={
            "replicas": 1,
            "gpusPerEngine": size,
            "maxContextLength": 1024,
            "engineArgs": ENGINE_ARGS | options.engine_args,
        },
        trainer={"gpusPerReplica": size},
        placement={"type": "colocated"},
    )
    ranks, group, _ = start(made, directory, gpus=size, ranks=size)
    syncs = []
    with section("cycles"):
        for cycle in range(options.cycles):
            began = time.monotonic()
            group.update_weights(cycle)
            syncs.append(round(time.monotonic() - began, 3))
            samples = generate(group, samples_of(prompts(256, SHAPES[options.shape]["vocab_size"]), cycle), 256)
            group.sleep()
        emit("wake and sync, all", syncs, "s")
        emit("wake and sync", statistics.median(syncs[1:]), "s")
        tell_log_probabilities(ranks, samples[:32])
    ray.shutdown()
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
