"""One SGLang engine and one fsdp rank on one GPU, through the product's own groups: weight sync by CUDA IPC and disk
with digests, generation with log-probs, interruption, sleep and wake, a killed engine; and its speed ÷ bare SGLang.

`python -m benchmarks.gpu.sglang_engine [--shape 0.5B] [--cycles 50]`
"""

import argparse
import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.gpu.awake import Awake
from benchmarks.gpu.common import ENGINE_ARGS, SHAPES, emit, gpu_memory, manifest, model_folder, section

PROMPT_TOKENS, NEW_TOKENS, REQUESTS = 84, 512, 512


def prompts(count: int, vocabulary: int) -> list[list[int]]:
    rng = random.Random(0)
    distinct = [[rng.randrange(1000, vocabulary - 1) for _ in range(PROMPT_TOKENS)] for _ in range(count // 16)]
    return [distinct[number // 16] for number in range(count)]


def samples_of(ids: list[list[int]], seed: int = 0) -> list[Any]:
    from rljob_trainer.rollout.types import Sample

    return [
        Sample("", list(prompt), group=number // 16, index=number % 16, seed=seed * 100000 + number)
        for number, prompt in enumerate(ids)
    ]


def bare(folder: Path, shape: str) -> None:
    """Tokens per second of SGLang itself on the same requests, in a process of its own."""
    import asyncio

    from sglang.srt.entrypoints.engine import Engine

    engine = Engine(model_path=str(folder), context_length=2056, mem_fraction_static=0.6, **ENGINE_ARGS)
    ids = prompts(REQUESTS, SHAPES[shape]["vocab_size"])
    params = {"temperature": 1.0, "max_new_tokens": NEW_TOKENS, "ignore_eos": True}

    async def once() -> float:
        start = time.monotonic()
        await asyncio.gather(
            *(
                engine.async_generate(input_ids=list(one), sampling_params=dict(params), return_logprob=True)
                for one in ids
            )
        )
        return REQUESTS * NEW_TOKENS / (time.monotonic() - start)

    speeds = [engine.loop.run_until_complete(once()) for _ in range(3)]
    emit("bare SGLang", round(max(speeds[1:])), "tokens/s")
    engine.shutdown()


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--shape", default="0.5B", choices=list(SHAPES))
    parser.add_argument("--cycles", type=int, default=50)
    parser.add_argument("--bare", type=Path)
    options = parser.parse_args()
    if options.bare is not None:
        bare(options.bare, options.shape)
        return 0
    import ray
    from rljob_trainer.config.job import RLJob
    from rljob_trainer.loops.engines import EngineGroup
    from rljob_trainer.loops.gpus import TrainerGpus
    from rljob_trainer.loops.placement import start_local_ray
    from rljob_trainer.loops.ranks import RankGroup
    from rljob_trainer.loops.weight_sync import DiskSync, IpcSync
    from rljob_trainer.rollout.types import SamplingParams, TrainSample

    directory = Path(tempfile.mkdtemp(prefix="sgl-proof-"))
    folder = model_folder(directory / "model", options.shape)
    vocabulary = SHAPES[options.shape]["vocab_size"]
    job = RLJob.model_validate(
        manifest("proof", folder, placement={"type": "colocated"}, algorithm={"kl": {"monitor": False}})
    )
    out = Path(os.environ.get("OUT", directory)) / "sgl"
    out.mkdir(parents=True, exist_ok=True)
    start_local_ray(1, 1, 1)
    start = time.monotonic()
    gpus = TrainerGpus(job.spec, lambda: None)
    ranks = RankGroup(job, directory, lambda: None, gpus=gpus)
    ipc = IpcSync(ranks, lambda: None)
    replaced = partial(emit, "engine replaced")
    group = EngineGroup(job, directory, lambda: None, replaced, sync=ipc, gpus=gpus)
    ranks.start()
    ranks.load(None)
    ranks.begin_rl()
    emit("trainer up", round(time.monotonic() - start, 1), "s")
    group.start()
    emit("engine up and asleep", round(time.monotonic() - start, 1), "s")
    emit("GPU memory while the engine sleeps", gpu_memory(), "MiB")

    def generate(ids: list[list[int]], sampling: Any, seed: int = 0) -> list[Any]:
        return group.generate(samples_of(ids, seed), sampling, None, limit=200.0, tick=lambda: None)

    with section("first sync"):
        start = time.monotonic()
        group.update_weights(0)
        emit("first sync by IPC", round(time.monotonic() - start, 3), "s")
        emit("GPU memory while the engine serves", gpu_memory(), "MiB")
    short = prompts(32, vocabulary)
    with section("log-probs"):
        made = generate(short, SamplingParams(max_new_tokens=256, ignore_eos=True))
        assert all(len(sample.response_ids) == 256 == len(sample.logprobs) for sample in made)
        assert {version for sample in made for version in sample.policy_versions} == {0}
        train = [TrainSample(s.prompt_ids, s.response_ids, s.loss_mask, s.logprobs, 0.0) for s in made]
        mine = ranks.compute_logprobs(train)
        gaps = sorted(
            abs(a - b) for s, row in zip(made, mine, strict=True) for a, b in zip(s.logprobs, row, strict=True)
        )
        emit("log-probs, trainer − engine: mean absolute", round(statistics.fmean(gaps), 5), "nats", 0.02, at_most=True)
        emit("log-probs: 99th percentile", round(gaps[int(len(gaps) * 0.99)], 5), "nats")
        emit("log-probs: 99.9th percentile", round(gaps[int(len(gaps) * 0.999)], 5), "nats")
        emit("log-probs: largest", round(gaps[-1], 5), "nats")
    with section("throughput"):
        sampling = SamplingParams(max_new_tokens=NEW_TOKENS, ignore_eos=True)
        speeds = []
        for turn in range(3):
            start = time.monotonic()
            made = generate(prompts(REQUESTS, vocabulary), sampling, turn)
            speeds.append(sum(len(sample.response_ids) for sample in made) / (time.monotonic() - start))
        emit("rollout", round(max(speeds[1:])), "tokens/s")
    with section("greedy and stops"):
        greedy = SamplingParams(temperature=0.0, max_new_tokens=32, ignore_eos=True)
        one, two = generate(short[:1], greedy), generate(short[:1], greedy)
        emit("greedy twice the same", one[0].response_ids == two[0].response_ids)
        text = one[0].response
        if len(text) > 6:
            stop = text[3:6]
            stopped = generate(
                short[:1], SamplingParams(temperature=0.0, max_new_tokens=32, ignore_eos=True, stop=(stop,))
            )
            sample = stopped[0]
            same = sample.response_ids == one[0].response_ids[: len(sample.response_ids)]
            emit(
                "a stop string ends it, tokens kept", stop in sample.response and same and sample.status == "completed"
            )
    with section("sync"):
        seconds = []
        for version in range(1, 8):
            start = time.monotonic()
            ipc.send(version, {0: Awake(group.actors[0])})
            seconds.append(time.monotonic() - start)
        emit("weight sync, colocated, awake", round(statistics.median(seconds), 4), "s", 0.15, at_most=True)
        emit("weight sync, all", [round(value, 4) for value in seconds], "s")
        group._version = 7
    with section("disk"):
        disk = DiskSync(ranks, directory / "weights", lambda: None, memory=False)
        start = time.monotonic()
        disk.send(8, {0: group.actors[0]})
        emit("weight sync by disk", round(time.monotonic() - start, 3), "s")
        health = ray.get(group.actors[0].health.remote(), timeout=30)
        emit("version after disk", health["version"])
    with section("interrupted"):
        pending = group.submit(
            samples_of(prompts(256, vocabulary)), SamplingParams(max_new_tokens=512, ignore_eos=True), None
        )
        for version in (9, 10):
            pending.poll(0.7)
            start = time.monotonic()
            ipc.send(version, {0: Awake(group.actors[0])})
            emit("sync while generating", round(time.monotonic() - start, 3), "s")
        deadline = time.monotonic() + 60
        while not pending.done and time.monotonic() < deadline:
            pending.poll(1.0)
        made = pending.results()
        mixed = sum(len(set(sample.policy_versions)) > 1 for sample in made)
        whole = all(len(s.response_ids) == 512 and s.policy_versions == sorted(s.policy_versions) for s in made)
        emit("samples of several versions, all whole", [mixed, whole])
    with section("sleep and wake"):
        memory, asleep, times = [], [], []
        for cycle in range(options.cycles):
            start = time.monotonic()
            group.sleep()
            slept = time.monotonic()
            asleep.append(gpu_memory())
            woken = time.monotonic()
            group.update_weights(100 + cycle)
            times.append((slept - start, time.monotonic() - woken))
            memory.append(gpu_memory())
        generate(short, SamplingParams(max_new_tokens=16, ignore_eos=True))
        emit("GPU memory asleep, first and last", [asleep[0], asleep[-1]], "MiB")
        emit("GPU memory awake, first and last", [memory[0], memory[-1]], "MiB")
        growth = max(memory[-1] - memory[1], asleep[-1] - asleep[1])
        emit(f"growth over {options.cycles} cycles", growth, "MiB", 64, at_most=True)
        emit("sleep", round(statistics.median(a for a, _ in times), 4), "s")
        emit("wake and sync", round(statistics.median(b for _, b in times), 4), "s")
    with section("killed"):
        pending = group.submit(
            samples_of(prompts(64, vocabulary)), SamplingParams(max_new_tokens=512, ignore_eos=True), None
        )
        pending.poll(1.0)
        scheduler = subprocess.run(["pgrep", "-f", "sglang::scheduler"], capture_output=True, text=True, check=False)
        victims = [int(pid) for pid in scheduler.stdout.split()]
        start = time.monotonic()
        os.kill(victims[0], signal.SIGKILL)
        while not pending.done and time.monotonic() - start < 150:
            pending.poll(1.0)
        emit("samples after a SIGKILL of the engine", len(pending.results()), "", 64)
        emit("time until they were all there", round(time.monotonic() - start, 1), "s")
    with section("bare"):
        ray.shutdown()
        time.sleep(2)
        done = subprocess.run(
            [sys.executable, "-m", "benchmarks.gpu.sglang_engine", "--bare", str(folder), "--shape", options.shape],
            stdout=subprocess.PIPE, stderr=(out / "bare.log").open("w"), text=True, timeout=150, check=False,
        )  # fmt: skip
        lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
        for line in lines:
            print(line, flush=True)
        import json

        emit("rollout ÷ bare SGLang", round(max(speeds[1:]) / json.loads(lines[-1])["value"], 3), "", 0.95)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
