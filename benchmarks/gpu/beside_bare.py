"""The product's engine and SGLang by itself in turns on one GPU: the same model, requests and size of the KV cache.

`python -m benchmarks.gpu.beside_bare [--shape 1.5B] [--turns 24]`. Both are up all the while, and one rests, without a
core of its own, while the other generates: hosts are unsteady by more than what is to be told apart (SGLang's scheduler
has one core, and a slow one is slower than the GPU), so that one after the other says little, and few turns not much.
Less a matter of hosts is the share of the product's turn in which SGLang has requests: the rest is its own.
"""

import argparse
import asyncio
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

from benchmarks.gpu.common import ENGINE_ARGS, SHAPES, emit, manifest, model_folder
from benchmarks.gpu.rank_and_engine import PROMPT_TOKENS, generate, prompts, samples_of, start
from benchmarks.gpu.runs import SCHEDULER, descendants

NEW_TOKENS, REQUESTS = 512, 512
ARGUMENTS = ENGINE_ARGS | {
    "max_total_tokens": REQUESTS * (PROMPT_TOKENS + NEW_TOKENS) + 8192,
    "sleep_on_idle": True,
}
MARK = "tokens/s: "


def serve(folder: Path, shape: str) -> None:
    """SGLang itself: for each line of standard input all requests, and a line with tokens per second."""
    from sglang.srt.entrypoints.engine import Engine

    engine = Engine(model_path=str(folder), context_length=2056, mem_fraction_static=0.6, **ARGUMENTS)
    ids = prompts(REQUESTS, SHAPES[shape]["vocab_size"])
    params = {"temperature": 1.0, "max_new_tokens": NEW_TOKENS, "ignore_eos": True}

    async def once() -> float:
        began = time.monotonic()
        await asyncio.gather(
            *(
                engine.async_generate(input_ids=list(one), sampling_params=dict(params), return_logprob=True)
                for one in ids
            )
        )
        return REQUESTS * NEW_TOKENS / (time.monotonic() - began)

    print(f"{MARK}0", flush=True)
    for _ in sys.stdin:
        print(f"{MARK}{engine.loop.run_until_complete(once())}", flush=True)
    engine.shutdown()


class Bare:
    """SGLang itself in a process of its own, which lives as long as the `with` block."""

    def __init__(self, folder: Path, shape: str, log: Path, limit: float) -> None:
        command = [sys.executable, "-m", "benchmarks.gpu.beside_bare", "--serve", str(folder), "--shape", shape]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log.open("w"), text=True, bufsize=1
        )
        self._until = time.monotonic() + limit
        self._end = threading.Timer(limit, self._process.kill)
        self._end.start()

    def seconds_left(self) -> float:
        """Of its limit."""
        return self._until - time.monotonic()

    def turn(self) -> float:
        """All requests once; tokens per second."""
        assert self._process.stdin is not None
        self._process.stdin.write("turn\n")
        return self._read()

    def wait(self) -> None:
        """Until it serves."""
        self._read()

    def __enter__(self) -> "Bare":
        return self

    def __exit__(self, *_: object) -> None:
        # It ends at the end of its input; if it doesn't, its timer ends it.
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()
        self._end.cancel()

    def _read(self) -> float:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.startswith(MARK):
                return float(line.removeprefix(MARK))
        raise RuntimeError("SGLang ended, or was not done within the limit")


def pin_schedulers(cores: set[int]) -> None:
    """Both engines' schedulers, all threads of theirs, to the same cores: a slow core is then slow for both."""
    for pid, line in descendants(os.getpid()).items():
        if SCHEDULER in line:
            for thread in os.listdir(f"/proc/{pid}/task"):
                os.sched_setaffinity(int(thread), cores)
            print(f"# scheduler {pid} on cores {sorted(cores)}", file=sys.stderr, flush=True)


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--shape", default="0.5B", choices=list(SHAPES))
    parser.add_argument("--turns", type=int, default=24)
    parser.add_argument("--limit", type=float, default=450.0, help="seconds for bare SGLang; ends the turns")
    parser.add_argument("--cores", type=int, nargs="+", help="of both schedulers; by default the kernel chooses")
    parser.add_argument("--serve", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve is not None:
        serve(options.serve, options.shape)
        return 0
    import ray

    directory = Path(tempfile.mkdtemp(prefix="beside-"))
    folder = model_folder(directory / "model", options.shape)
    made = manifest("beside", folder, placement={"type": "colocated"}, algorithm={"kl": {"monitor": False}})
    made["spec"]["rollout"]["engineArgs"] = ARGUMENTS
    _, group, _ = start(made, directory, gpus=1)
    group.update_weights(0)
    requests = prompts(REQUESTS, SHAPES[options.shape]["vocab_size"])
    ours: list[float] = []
    theirs: list[float] = []
    shares: list[float] = []
    log = Path(os.environ.get("OUT", directory)) / "bare.log"

    def busy() -> float:
        (engine,) = group.metrics().values()
        return float(engine["busy_seconds"])

    def product(turn: int) -> None:
        before, began = busy(), time.monotonic()
        generate(group, samples_of(requests, turn), NEW_TOKENS)
        seconds = time.monotonic() - began
        ours.append(REQUESTS * NEW_TOKENS / seconds)
        shares.append((busy() - before) / seconds)

    with Bare(folder, options.shape, log, options.limit) as bare:
        bare.wait()
        if options.cores:
            pin_schedulers(set(options.cores))
        for turn in range(options.turns + 1):
            began = time.monotonic()
            if turn % 2:  # whoever is first has rested longer
                theirs.append(bare.turn())
                product(turn)
            else:
                product(turn)
                theirs.append(bare.turn())
            print(f"# turn {turn}: {ours[-1]:.0f}, bare {theirs[-1]:.0f} tokens/s", file=sys.stderr, flush=True)
            if bare.seconds_left() < 2 * (time.monotonic() - began):
                break
    for name, speeds in (("rollout", ours), ("bare SGLang", theirs)):
        emit(f"{name}, all", [round(speed) for speed in speeds], "tokens/s")
        emit(name, round(statistics.median(speeds[1:])), "tokens/s")
    ratio = statistics.median(ours[1:]) / statistics.median(theirs[1:])
    emit("rollout ÷ bare SGLang, medians", round(ratio, 3), "", 0.95)
    ratios = [mine / bare for mine, bare in zip(ours[1:], theirs[1:], strict=True)]
    emit("rollout ÷ bare SGLang, median of each turn's", round(statistics.median(ratios), 3), "", 0.95)
    emit("share of the product's turn in which SGLang has requests", round(statistics.median(shares[1:]), 3))
    emit("rollout ÷ bare SGLang, the fastest of each", round(max(ours[1:]) / max(theirs[1:]), 3))
    ray.shutdown()
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
