"""Engines over several of the trainer's own GPUs: weights by CUDA IPC from each GPU's rank, then sleep and wake.

`python -m benchmarks.gpu.colocated_engines [--engine-gpus 2] [--cycles 10]`
"""

import argparse
import json
import statistics
import tempfile
import time
from functools import partial
from pathlib import Path

from benchmarks.gpu.common import ENGINE_ARGS, SHAPES, emit, manifest, model_folder, section
from benchmarks.gpu.sglang_engine import prompts, samples_of


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--shape", default="0.5B", choices=list(SHAPES))
    parser.add_argument("--engine-gpus", type=int, default=2)
    parser.add_argument("--cycles", type=int, default=10)
    parser.add_argument("--engine-args", type=json.loads, default={}, help="more of them, as JSON")
    options = parser.parse_args()
    import ray
    from rljob_trainer.config.job import RLJob
    from rljob_trainer.loops.engines import EngineGroup
    from rljob_trainer.loops.gpus import TrainerGpus
    from rljob_trainer.loops.placement import start_local_ray
    from rljob_trainer.loops.ranks import RankGroup
    from rljob_trainer.loops.weight_sync import make_weight_sync
    from rljob_trainer.rollout.types import SamplingParams, TrainSample

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
    job = RLJob.model_validate(made)
    start_local_ray(size, size, size)
    gpus = TrainerGpus(job.spec, lambda: None)
    ranks = RankGroup(job, directory, lambda: None, gpus=gpus)
    sync = make_weight_sync(job.spec, ranks, directory, lambda: None)
    group = EngineGroup(job, directory, lambda: None, partial(emit, "engine replaced"), sync=sync, gpus=gpus)
    start = time.monotonic()
    ranks.start()
    ranks.load(None)
    ranks.begin_rl()
    group.start()
    emit("ranks and engine up, the engine asleep", round(time.monotonic() - start, 1), "s")
    sampling = SamplingParams(max_new_tokens=256, ignore_eos=True)
    syncs = []
    with section("cycles"):
        for cycle in range(options.cycles):
            start = time.monotonic()
            group.update_weights(cycle)
            syncs.append(round(time.monotonic() - start, 3))
            ids = samples_of(prompts(256, SHAPES[options.shape]["vocab_size"]), cycle)
            samples = group.generate(ids, sampling, None, limit=120.0, tick=lambda: None)
            group.sleep()
        emit("wake and sync, all", syncs, "s")
        emit("wake and sync", statistics.median(syncs[1:]), "s")
        train = [TrainSample(s.prompt_ids, s.response_ids, s.loss_mask, s.logprobs, 0.0) for s in samples[:32]]
        rows = zip(samples, ranks.compute_logprobs(train), strict=False)
        gaps = [abs(a - b) for sample, row in rows for a, b in zip(sample.logprobs, row, strict=True)]
        mean = round(statistics.fmean(gaps), 5)
        emit("log-probs, trainer − engine: mean absolute", mean, "nats", 0.02, at_most=True)
    ray.shutdown()
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
