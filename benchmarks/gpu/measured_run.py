"""A run of the product's driver, timed step by step; then its own rank and engine are measured where they stand.

`python -m benchmarks.gpu.measured_run MANIFEST DIR [PART …]`: the driver's loop to its last rollout (without the final
commit); log-probabilities of both sides, syncs with digests, tokens a second, sleep and wake, a killed engine.
"""

import statistics
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks.gpu.awake import Awake
from benchmarks.gpu.common import emit, gpu_memory, section, tell_bandwidth
from benchmarks.gpu.rank_and_engine import tell_killed, tell_log_probabilities
from benchmarks.gpu.runs import NEW_TOKENS, PROMPTS, SAMPLES, metrics_of, tell_steps

CYCLES = 50


def samples_of(run: Any, prompts: int, seed: int) -> list[Any]:
    """SAMPLES of each of the first prompts."""
    from rljob.types import Sample

    rows = run.context.data.prompts.rows
    return [
        Sample(rows[number].prompt, list(rows[number].prompt_ids), group=number, index=index, seed=seed * 10000 + index)
        for number in range(prompts)
        for index in range(SAMPLES)
    ]


def generate(run: Any, prompts: int, tokens: int, seed: int = 0) -> tuple[list[Any], float]:
    """Samples, and the seconds they took."""
    from rljob.types import SamplingParams

    sampling = SamplingParams(max_new_tokens=tokens, ignore_eos=True)
    start = time.monotonic()
    made = run.workers.engines.generate(samples_of(run, prompts, seed), sampling, None, limit=200.0, tick=lambda: None)
    return made, time.monotonic() - start


def log_probabilities(run: Any) -> None:
    """Of the same tokens, by the rank and by the engine."""
    tell_log_probabilities(run.workers.ranks, generate(run, 2, 256)[0])


def syncs(run: Any) -> None:
    """The whole exchange with an engine that is awake, digest included."""
    group = run.workers.engines
    actors = {0: Awake(group.pool.actors[0])}
    seconds = []
    for version in range(100, 115):
        start = time.monotonic()
        group._sync.send(version, actors)
        seconds.append(time.monotonic() - start)
    middle = statistics.median(seconds)
    emit("weight sync, colocated, awake", round(middle, 4), "s", 0.15, at_most=True)
    emit("weight sync, all", [round(value, 4) for value in seconds], "s")
    size = sum(bucket.nbytes for bucket in run.workers.ranks.weights_plan(1 << 29))
    emit("bytes a second over the whole sync", round(size / middle / 1e9, 2), "GB/s")
    tell_bandwidth(0, 0)


def cycles(run: Any) -> None:
    """Sleep, wake and sync, CYCLES times."""
    memory, asleep, times = [], [], []
    for cycle in range(CYCLES):
        start = time.monotonic()
        run.workers.engines.sleep()
        slept = time.monotonic()
        if cycle in (1, CYCLES - 1):
            asleep.append(gpu_memory())
        woken = time.monotonic()
        run.workers.engines.update_weights(200 + cycle)
        times.append((slept - start, time.monotonic() - woken))
        if cycle in (1, CYCLES - 1):
            memory.append(gpu_memory())
    emit("GPU memory asleep, first and last", asleep, "MiB")
    emit("GPU memory awake, first and last", memory, "MiB")
    growth = max(memory[1] - memory[0], asleep[1] - asleep[0])
    emit(f"growth over {CYCLES} cycles", growth, "MiB", 64, at_most=True)
    emit("sleep", round(statistics.median(a for a, _ in times), 4), "s")
    emit("wake and sync", round(statistics.median(b for _, b in times), 4), "s")


def speed(run: Any) -> None:
    """Tokens a second over a whole rollout."""
    seconds = min(generate(run, PROMPTS, NEW_TOKENS, seed)[1] for seed in (1, 2))
    emit("rollout", round(PROMPTS * SAMPLES * NEW_TOKENS / seconds), "tokens/s")


def killed(run: Any) -> None:
    """SIGKILL of a process of the engine while it generates."""
    tell_killed(run.workers.engines, samples_of(run, 4, 3), NEW_TOKENS)


def calls() -> None:
    """Where a rollout's and a step's time is, as Ray saw it: in the engine and the rank themselves, or on the way."""
    import ray

    spent: dict[str, list[float]] = {}
    for event in ray.timeline():
        task = str(event.get("args", {}).get("name") or event.get("name", ""))
        if any(word in task for word in ("generate", "rl_step", "finish_update", "sleep", "wake")):
            spent.setdefault(f"{task}, {event['cat']}", []).append(event["dur"] / 1e6)
    for name, seconds in sorted(spent.items()):
        emit(f"call {name}", [round(value, 4) for value in seconds[-3:]], "s")


PARTS = {part.__name__: part for part in (syncs, cycles, log_probabilities, speed, killed)}


def measured(run: Any, commit: Any, *_: Any) -> None:
    """In the place of `orchestrator.run.Run.train`."""
    from rljob_trainer.orchestrator.evaluate import Evaluator
    from rljob_trainer.orchestrator.rl import ReinforcementLearning

    start = time.monotonic()
    run.start(commit)
    emit("rank and engine up", round(time.monotonic() - start, 1), "s")
    run.checkpointer.commit = lambda: None
    evaluator = Evaluator(run.context, run.state, run.workers, run.scoring, run.checkpointer, run.observer)
    ReinforcementLearning(
        run.context, run.state, run.workers, run.scoring, evaluator, run.checkpointer, run.observer
    ).train()
    tell_steps(run.context.job.metadata.name, metrics_of(run.context.incarnation.job_dir))
    with section("calls"):
        calls()
    for part in (PARTS[name] for name in sys.argv[3:] or PARTS):
        with section(part.__name__):
            part(run)


def main(manifest: Path, directory: Path) -> int:
    from rljob_trainer import driver
    from rljob_trainer.orchestrator.run import Run

    # What `run_job` calls; everything around it is the product.
    setattr(Run, "train", measured)  # noqa: B010
    return driver.main(["--job", str(manifest), "--dir", str(directory), "--attempt", "1", "--incarnation",
                        "0001-proof", "--local", "--quiet"])  # fmt: skip


if __name__ == "__main__":
    raise SystemExit(main(Path(sys.argv[1]), Path(sys.argv[2])))
