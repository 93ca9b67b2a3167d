"""Weights by NCCL from a rank on one GPU to an engine on another, idle and while it generates.

`python -m benchmarks.gpu.disaggregated_sync [--shape 0.5B]`, on two GPUs.
"""

import argparse
import os
import statistics
import tempfile
import time
from functools import partial
from pathlib import Path

from benchmarks.gpu.common import SHAPES, emit, manifest, model_folder, section
from benchmarks.gpu.sglang_engine import prompts, samples_of


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--shape", default="0.5B", choices=list(SHAPES))
    options = parser.parse_args()
    os.environ |= {"NCCL_NVLS_ENABLE": "0", "TORCH_SYMM_MEM_DISABLE_MULTICAST": "1", "NVSHMEM_DISABLE_NVLS": "1"}
    import ray
    from rljob_trainer.config.job import RLJob
    from rljob_trainer.loops.engines import EngineGroup
    from rljob_trainer.loops.gpus import TrainerGpus
    from rljob_trainer.loops.placement import start_local_ray
    from rljob_trainer.loops.ranks import RankGroup
    from rljob_trainer.loops.weight_sync import NcclSync
    from rljob_trainer.rollout.types import SamplingParams

    directory = Path(tempfile.mkdtemp(prefix="sgl-proof-"))
    folder = model_folder(directory / "model", options.shape)
    job = RLJob.model_validate(
        manifest("proof", folder, algorithm={"kl": {"monitor": False}}, rollout={"gpusPerEngine": 1})
    )
    start_local_ray(1, 1, 2)
    gpus = TrainerGpus(job.spec, lambda: None)
    ranks = RankGroup(job, directory, lambda: None, gpus=gpus)
    sync = NcclSync(ranks, lambda: None, gpus_per_engine=1)
    replaced = partial(emit, "engine replaced")
    group = EngineGroup(job, directory, lambda: None, replaced, sync=sync, gpus=gpus)
    start = time.monotonic()
    ranks.start()
    ranks.load(None)
    group.start()
    emit("rank and engine up", round(time.monotonic() - start, 1), "s")
    size = sum(bucket.nbytes for bucket in ranks.weights_plan(1 << 29))
    with section("sync"):
        seconds = []
        for version in range(8):
            start = time.monotonic()
            group.update_weights(version)
            seconds.append(time.monotonic() - start)
        emit("weight sync, disaggregated", round(statistics.median(seconds[1:]), 4), "s", 0.25, at_most=True)
        emit("weight sync, all", [round(value, 4) for value in seconds], "s")
        emit("bytes a second over the whole sync", round(size / statistics.median(seconds[1:]) / 1e9, 2), "GB/s")
    with section("interrupted"):
        sampling = SamplingParams(max_new_tokens=512, ignore_eos=True)
        ids = prompts(256, SHAPES[options.shape]["vocab_size"])
        pending = group.submit(samples_of(ids), sampling, None)
        for version in (9, 10, 11):
            pending.poll(0.7)
            start = time.monotonic()
            group.update_weights(version)
            emit("sync while generating", round(time.monotonic() - start, 3), "s")
        deadline = time.monotonic() + 60
        while not pending.done and time.monotonic() < deadline:
            pending.poll(1.0)
        made = pending.results()
        whole = all(len(s.response_ids) == 512 and s.policy_versions == sorted(s.policy_versions) for s in made)
        emit("samples of several versions, all whole", [sum(len(set(s.policy_versions)) > 1 for s in made), whole])
    ray.shutdown()
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
