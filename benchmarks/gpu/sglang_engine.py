"""One SGLang engine and one fsdp rank on one GPU, through the product's own groups: weight sync by CUDA IPC and disk
with digests, generation with log-probs, interruption, sleep and wake, a killed engine. (Beside bare SGLang:
`benchmarks.gpu.beside_bare`.)

`python -m benchmarks.gpu.sglang_engine [--shape 0.5B] [--cycles 50]`
"""

import argparse
import statistics
import tempfile
import time
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.gpu.awake import Awake
from benchmarks.gpu.common import SHAPES, emit, gpu_memory, manifest, model_folder, section, tell_bandwidth
from benchmarks.gpu.rank_and_engine import (
    generate,
    prompts,
    samples_of,
    start,
    tell_interrupted,
    tell_killed,
    tell_log_probabilities,
)

NEW_TOKENS, REQUESTS = 512, 512


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--shape", default="0.5B", choices=list(SHAPES))
    parser.add_argument("--cycles", type=int, default=50)
    parser.add_argument("--no-kill", action="store_true", help="without the engine that is killed")
    options = parser.parse_args()
    import ray
    from rljob.types import SamplingParams
    from rljob_trainer.workers.weight_sync import DiskSync

    directory = Path(tempfile.mkdtemp(prefix="sgl-proof-"))
    folder = model_folder(directory / "model", options.shape)
    vocabulary = SHAPES[options.shape]["vocab_size"]
    made = manifest("proof", folder, placement={"type": "colocated"}, algorithm={"kl": {"monitor": False}})
    ranks, group, ipc = start(made, directory, gpus=1)
    emit("GPU memory while the engine sleeps", gpu_memory(), "MiB")

    def timed_sync(version: int) -> float:
        began = time.monotonic()
        ipc.send(version, {0: Awake(group.pool.actors[0])})
        return time.monotonic() - began

    with section("first sync"):
        began = time.monotonic()
        group.update_weights(0)
        emit("first sync by IPC", round(time.monotonic() - began, 3), "s")
        emit("GPU memory while the engine serves", gpu_memory(), "MiB")
    short = prompts(32, vocabulary)
    with section("log-probs"):
        samples = generate(group, samples_of(short), 256)
        assert all(len(sample.response_ids) == 256 == len(sample.logprobs) for sample in samples)
        assert {version for sample in samples for version in sample.policy_versions} == {0}
        tell_log_probabilities(ranks, samples)
    with section("throughput"):
        speeds = []
        for turn in range(4):
            began = time.monotonic()
            generate(group, samples_of(prompts(REQUESTS, vocabulary), turn), NEW_TOKENS)
            speeds.append(REQUESTS * NEW_TOKENS / (time.monotonic() - began))
        emit("rollout, all", [round(speed) for speed in speeds], "tokens/s")
        emit("rollout", round(max(speeds[1:])), "tokens/s")
    with section("greedy and stops"):
        greedy = SamplingParams(temperature=0.0, max_new_tokens=32, ignore_eos=True)

        def one(sampling: SamplingParams) -> Any:
            return group.generate(samples_of(short[:1]), sampling, None, limit=200.0, tick=lambda: None)[0]

        first = one(greedy)
        emit("greedy twice the same", first.response_ids == one(greedy).response_ids)
        if len(first.response) > 6:
            stop = first.response[3:6]
            stopped = one(replace(greedy, stop=(stop,)))
            same = stopped.response_ids == first.response_ids[: len(stopped.response_ids)]
            ended = stop in stopped.response and same and stopped.status == "completed"
            emit("a stop string ends it, tokens kept", ended)
    with section("sync"):
        seconds = [timed_sync(version) for version in range(1, 8)]
        emit("weight sync, colocated, awake", round(statistics.median(seconds), 4), "s", 0.15, at_most=True)
        emit("weight sync, all", [round(value, 4) for value in seconds], "s")
        size = sum(bucket.nbytes for bucket in ranks.weights_plan(1 << 29))
        emit("bytes a second over the whole sync", round(size / statistics.median(seconds) / 1e9, 2), "GB/s")
        tell_bandwidth(0, 0)
        group._version = 7
    with section("disk"):
        disk = DiskSync(ranks, directory / "weights", lambda: None, memory=False)
        began = time.monotonic()
        disk.send(8, {0: group.pool.actors[0]})
        emit("weight sync by disk", round(time.monotonic() - began, 3), "s")
        health = ray.get(group.pool.actors[0].health.remote(), timeout=30)
        emit("version after disk", health["version"])
    with section("interrupted"):
        syncs = [partial(timed_sync, version) for version in (9, 10)]
        tell_interrupted(group, samples_of(prompts(256, vocabulary)), 512, syncs)
    with section("sleep and wake"):
        memory, asleep, times = [], [], []
        for cycle in range(options.cycles):
            began = time.monotonic()
            group.sleep()
            slept = time.monotonic()
            asleep.append(gpu_memory())
            woken = time.monotonic()
            group.update_weights(100 + cycle)
            times.append((slept - began, time.monotonic() - woken))
            memory.append(gpu_memory())
        generate(group, samples_of(short), 16)
        emit("GPU memory asleep, first and last", [asleep[0], asleep[-1]], "MiB")
        emit("GPU memory awake, first and last", [memory[0], memory[-1]], "MiB")
        growth = max(memory[-1] - memory[1], asleep[-1] - asleep[1])
        emit(f"growth over {options.cycles} cycles", growth, "MiB", 64, at_most=True)
        emit("sleep", round(statistics.median(a for a, _ in times), 4), "s")
        emit("wake and sync", round(statistics.median(b for _, b in times), 4), "s")
    if not options.no_kill:
        with section("killed"):
            tell_killed(group, samples_of(prompts(64, vocabulary)), 512)
    ray.shutdown()
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
