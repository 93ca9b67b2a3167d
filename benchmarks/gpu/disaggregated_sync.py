"""Weights by NCCL from a rank on one GPU to an engine on others, idle and while it generates; log-probs of both; an
engine that is killed.

`python -m benchmarks.gpu.disaggregated_sync [--shape 0.5B] [--engine-gpus 2] [--killed]`, on a GPU more than the engine
has. `--shape moe`: a small Qwen3-MoE, trained by `megatron`.
"""

import argparse
import os
import signal
import statistics
import tempfile
import time
from functools import partial
from pathlib import Path

from benchmarks.gpu.common import SHAPES, emit, manifest, model_folder, section
from benchmarks.gpu.runs import descendants
from benchmarks.gpu.sglang_engine import prompts, samples_of
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
    from rljob_trainer.config.job import RLJob
    from rljob_trainer.loops.engines import EngineGroup
    from rljob_trainer.loops.gpus import TrainerGpus
    from rljob_trainer.loops.placement import start_local_ray
    from rljob_trainer.loops.ranks import RankGroup
    from rljob_trainer.loops.weight_sync import NcclSync
    from rljob_trainer.rollout.types import SamplingParams, TrainSample

    directory = Path(tempfile.mkdtemp(prefix="sgl-proof-"))
    folder = write_model("qwen3_moe", directory) if moe else model_folder(directory / "model", options.shape)
    vocabulary = VOCABULARY if moe else SHAPES[options.shape]["vocab_size"]
    job = RLJob.model_validate(
        manifest(
            "proof",
            folder,
            algorithm={"kl": {"monitor": False}},
            rollout={"gpusPerEngine": several, "maxContextLength": 1024},
            trainer={"backend": "megatron" if moe else "fsdp"},
        )
    )
    start_local_ray(1, 1, 1 + several)
    gpus = TrainerGpus(job.spec, lambda: None)
    ranks = RankGroup(job, directory, lambda: None, gpus=gpus)
    sync = NcclSync(ranks, lambda: None, gpus_per_engine=several)
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
    with section("log-probs"):
        made = group.generate(
            samples_of(prompts(32, vocabulary)),
            SamplingParams(max_new_tokens=256, ignore_eos=True),
            None,
            limit=200.0,
            tick=lambda: None,
        )
        train = [TrainSample(s.prompt_ids, s.response_ids, s.loss_mask, s.logprobs, 0.0) for s in made]
        mine = ranks.compute_logprobs(train)
        gaps = sorted(
            abs(a - b) for s, row in zip(made, mine, strict=True) for a, b in zip(s.logprobs, row, strict=True)
        )
        mean = round(statistics.fmean(gaps), 5)
        emit("log-probs, trainer − engine: mean absolute", mean, "nats", 0.02, at_most=True)
        emit("log-probs: 99th percentile and largest", [round(gaps[len(gaps) * 99 // 100], 5), round(gaps[-1], 5)])
    with section("throughput"):
        for turn in range(2):
            start = time.monotonic()
            sampling = SamplingParams(max_new_tokens=512, ignore_eos=True)
            ids = samples_of(prompts(512, vocabulary), turn)
            made = group.generate(ids, sampling, None, limit=200.0, tick=lambda: None)
            speed = sum(len(sample.response_ids) for sample in made) / (time.monotonic() - start)
            emit("rollout", round(speed), "tokens/s")
    with section("interrupted"):
        sampling = SamplingParams(max_new_tokens=512, ignore_eos=True)
        ids = prompts(256, vocabulary)
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
    if options.killed:
        with section("killed"):
            pending = group.submit(samples_of(prompts(64, vocabulary)), sampling, None)
            pending.poll(1.0)
            victim = max(pid for pid, line in descendants(os.getpid()).items() if "sglang::scheduler" in line)
            start = time.monotonic()
            os.kill(victim, signal.SIGKILL)
            while not pending.done and time.monotonic() - start < 200:
                pending.poll(1.0)
            emit("samples after a SIGKILL of one of the engine's processes", len(pending.results()), "", 64)
            emit("time until they were all there", round(time.monotonic() - start, 1), "s")
    ray.shutdown()
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
