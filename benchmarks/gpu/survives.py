"""A run whose engine, or whose rank, is killed outright ends with all its steps.

`python -m benchmarks.gpu.survives [--shape 0.1B] [--cpu]`: `rljob run`, with a SIGKILL of a process of the engine in
the middle of a rollout (the engine is replaced, its samples are made again), and with one of the training rank (the
attempt fails, the next one resumes from the last commit). The time lost is what passed until there was a step more than
before, less a usual step. `--cpu` tries the script without a GPU: tiny model, torch engine.
"""

import argparse
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.gpu.common import SHAPES, emit, section
from benchmarks.gpu.runs import ENGINE_PROCESSES, TINY, descendants, job, metrics_of

RANK_PROCESSES = ("ray::TrainerRank",)


def run(
    directory: Path, name: str, options: argparse.Namespace, victims: tuple[str, ...] = ()
) -> tuple[int, list[dict[str, Any]]]:
    """Run the job; kill the first process that has one of `victims` in its command line, in the middle of the rollout
    after the first commit. Returns when (0: never) and the steps."""
    target = directory / name
    spec = TINY if options.cpu else {}
    made = job(target, options.shape, rollouts=options.rollouts, **spec)
    made["spec"]["checkpoint"]["saveInterval"] = 2
    made["spec"]["lifecycle"] = {"backoffLimit": 2}
    if not options.cpu:
        # A short start, and room beside another such run on the same GPU.
        made["spec"]["rollout"]["engineArgs"] |= {
            "cuda_graph_max_bs_decode": 64, "mem_fraction_static": 0.8, "max_total_tokens": 65536,
        }  # fmt: skip
        made["spec"]["rollout"] |= {"batchSize": 8, "nSamplesPerPrompt": 8}
        made["spec"]["algorithm"]["tis"] = {"enabled": True}
    manifest = directory / f"{name}.json"
    manifest.write_text(json.dumps(made), encoding="utf-8")
    out = Path(os.environ.get("OUT", directory))
    killed = 0
    start = time.monotonic()
    with (out / f"survives-{name}.log").open("w") as log:
        process = subprocess.Popen(
            [sys.executable, "-W", "ignore", "-m", "benchmarks.gpu.runs", str(manifest), str(target)],
            stdout=log, stderr=subprocess.STDOUT,
        )  # fmt: skip
        try:
            while process.poll() is None:
                if time.monotonic() - start > options.limit:
                    raise TimeoutError(f"{name}: not done within {options.limit:.0f} s")
                if victims and not killed and len(metrics_of(target)) >= 3:
                    time.sleep(options.into)
                    chosen = next(
                        (pid for word in victims for pid, line in descendants(process.pid).items() if word in line),
                        None,
                    )
                    if chosen is not None:
                        killed = len(metrics_of(target))
                        os.kill(chosen, signal.SIGKILL)
                time.sleep(0.05)
        finally:
            if process.poll() is None:
                process.send_signal(signal.SIGINT)
                process.send_signal(signal.SIGINT)
                process.wait(timeout=60)
    emit(f"{name}: exit code", process.returncode, "", 0, at_most=True)
    emit(f"{name}: wall clock, start included", round(time.monotonic() - start, 1), "s")
    emit(f"{name}: killed in rollout", killed)
    return killed, metrics_of(target)


def lost(steps: list[dict[str, Any]], killed: int) -> float:
    """Seconds between the last step before the kill and the first that went beyond it, less a usual step's."""
    before = steps[killed - 1]
    after = next(line for line in steps[killed:] if line["rollout"] > before["rollout"])
    usual = statistics.median(line["seconds/total"] for line in steps[1:] if line is not after)
    return float(after["time"] - before["time"] - usual)


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--shape", default="0.1B", choices=list(SHAPES))
    parser.add_argument("--rollouts", type=int, default=8)
    parser.add_argument("--into", type=float, default=0.4, help="seconds after a step at which the next is hit")
    parser.add_argument("--cases", nargs="*", default=["engine", "rank"])
    parser.add_argument("--cpu", action="store_true")
    parser.add_argument("--limit", type=float, default=420.0, help="seconds for each run; an engine may need 130")
    options = parser.parse_args()
    options.shape = "tiny" if options.cpu else options.shape
    directory = Path(tempfile.mkdtemp(prefix="survives-"))
    for name in options.cases:
        with section(name):
            killed, steps = run(directory, name, options, {"engine": ENGINE_PROCESSES, "rank": RANK_PROCESSES}[name])
            numbers = [int(line["rollout"]) for line in steps]
            emit(f"{name}: last rollout", max(numbers, default=0), "", options.rollouts)
            emit(f"{name}: rollouts, as they were done", numbers)
            emit(f"{name}: time lost", round(lost(steps, killed), 1), "s")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
