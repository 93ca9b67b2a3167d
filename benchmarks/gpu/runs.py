"""Whole runs for timing: a model of random weights, prompts and responses of fixed lengths, the product's own driver.

`python -m benchmarks.gpu.runs MANIFEST DIR` is `rljob run` in a process of its own, less the checks of the manifest:
what this version refuses is let through, since a refusal is lifted when a benchmark has shown the feature.
"""

import json
import os
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

from benchmarks.gpu.common import ENGINE_ARGS, emit, manifest, model_folder

PROMPTS, SAMPLES, NEW_TOKENS = 32, 16, 512
PHASES = ("generate", "reward", "train", "sync", "commit", "idle")
SCHEDULER = "sglang::scheduler"
ENGINE_PROCESSES = (SCHEDULER, "ray::RolloutWorker")
"""Titles of an engine's processes, the one to kill first."""
TINY: dict[str, Any] = {
    "model": {"dtype": "float32"},
    "rollout": {"engine": "torch", "engineArgs": {}, "gpusPerEngine": 0, "batchSize": 4, "nSamplesPerPrompt": 4,
                "sampling": {"temperature": 1.0, "maxResponseLength": 256}},
    "trainer": {"backend": "fsdp", "gpusPerReplica": 0, "maxTokensPerGpu": 4096},
    "placement": {"type": "disaggregated"},
}  # fmt: skip
"""What makes such a job one for CPUs, to try a benchmark's script."""


def prompt_texts(count: int) -> list[str]:
    """Prompts of about 84 tokens."""
    return ["the quick brown fox " * 20 + str(number) for number in range(count)]


def reward(sample: Any) -> float:
    """Says nothing about the text; differs within a group, so that there is something to learn from."""
    return float(len(sample.response) % 7)


def job(directory: Path, shape: str, *, rollouts: int, max_tokens: int = 16384, **spec: Any) -> dict[str, Any]:
    """A manifest in `directory`: GRPO with one step a rollout. `spec` adds to it, section by section.

    Weights are random: the end of sequence is drawn once in 150,000 tokens, so responses have their full length.
    """
    folder = model_folder(directory.parent / f"model-{shape}", shape)
    directory.mkdir(parents=True, exist_ok=True)
    lines = [json.dumps({"prompt": text, "label": ""}) for text in prompt_texts(256)]
    (directory / "prompts.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    made = manifest(
        directory.name.lower().replace(".", "-"),
        folder,
        data={"train": {"path": "prompts.jsonl", "applyChatTemplate": False, "maxPromptLength": 256}},
        rollout={
            "batchSize": PROMPTS,
            "nSamplesPerPrompt": SAMPLES,
            "numRollout": rollouts,
            "sampling": {"temperature": 1.0, "maxResponseLength": NEW_TOKENS},
            "maxContextLength": 1024,
            "engineArgs": ENGINE_ARGS | {"mem_fraction_static": 0.35},
            "gpusPerEngine": 1,
        },
        reward={"functions": [{"name": "custom", "function": "benchmarks.gpu.runs:reward"}]},
        algorithm={"kl": {"lossCoef": 0.001}},
        optimizer={"lr": 1e-6},
        checkpoint={"saveInterval": 0, "saveHf": False},
        tracking={"logCompletions": 0, "metricsPort": 0},
        placement={"type": "colocated"},
    )
    for key, value in ({"trainer": {"maxTokensPerGpu": max_tokens}} | spec).items():
        old = made["spec"].get(key)
        made["spec"][key] = old | value if isinstance(old, dict) else value
    return made


def run(module: str, made: dict[str, Any], target: Path, log: str, limit: float, *more: str) -> list[dict[str, Any]]:
    """The rollouts that `python -m module MANIFEST TARGET …` recorded, run in a process of its own, ended after `limit`
    seconds. Its standard error goes to `log`, in $OUT or beside the target. Raises RuntimeError, the ends of the logs
    told, when there are fewer than the job has."""
    manifest = target.parent / f"{target.name}.json"
    manifest.write_text(json.dumps(made), encoding="utf-8")
    place = Path(os.environ.get("OUT", target.parent)) / log
    command = [sys.executable, "-W", "ignore", "-m", module, str(manifest), str(target), *more]
    with place.open("w") as file:
        try:
            end = f"with {subprocess.run(command, stderr=file, timeout=limit, check=False).returncode}"
        except subprocess.TimeoutExpired:
            end = f"at its limit of {limit:.0f} s"
    lines, wanted = metrics_of(target), made["spec"]["rollout"]["numRollout"]
    if len(lines) < wanted:
        for told in (place, *sorted(target.glob("attempts/*/driver.log"))):
            print(told.read_text()[-2500:], file=sys.stderr, flush=True)
        raise RuntimeError(f"{target.name} ended {end} after {len(lines)} of {wanted} rollouts")
    return lines


def metrics_of(directory: Path, kind: str = "rl") -> list[dict[str, Any]]:
    """Lines of a kind in the metrics of all attempts, in order."""
    files = sorted((directory / "attempts").glob("*/metrics.jsonl"))
    lines = [json.loads(line) for file in files for line in file.read_text(encoding="utf-8").splitlines()]
    return [line for line in lines if line["kind"] == kind]


def descendants(pid: int) -> dict[int, str]:
    """Processes below `pid`, with their command lines: none that this did not start is ever among them."""
    parents: dict[int, int] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                parents[int(entry.name)] = int((entry / "stat").read_text().rsplit(")", 1)[1].split()[1])
            except OSError:
                continue
    found: dict[int, str] = {}
    waiting = [pid]
    while waiting:
        parent = waiting.pop()
        for child in [child for child, of in parents.items() if of == parent]:
            waiting.append(child)
            try:
                found[child] = Path(f"/proc/{child}/cmdline").read_text().replace("\0", " ").strip()
            except OSError:
                continue
    return found


def tell_steps(name: str, lines: list[dict[str, Any]], first: int = 2) -> None:
    """Emits what steps took from the number `first` on (kernels are compiled before)."""
    steady = lines[first:]
    per_step = PROMPTS * SAMPLES / rate_of(lines, first)
    emit(f"{name}: steps, all", [round(line["seconds/total"], 3) for line in lines], "s")
    emit(f"{name}: step", round(per_step, 3), "s")
    emit(f"{name}: rate", round(rate_of(lines, first), 2), "samples/s")
    emit(f"{name}: response", round(statistics.fmean(line["response_length"] for line in steady), 1), "tokens")
    for phase in PHASES:
        emit(f"{name}: {phase}", round(statistics.median(line[f"seconds/{phase}"] for line in steady), 4), "s")
    share = sum(line["seconds/idle"] for line in steady) / sum(map(_seconds, steady))
    emit(f"{name}: idle share", round(share, 4), "", 0.05, at_most=True)
    for key in ("kl", "logprob_diff_mean", "logprob_diff_max", "mismatch_kl", "tis_weight_mean",
                "tis_effective_samples", "tis_above_fraction", "grad_norm", "staleness"):  # fmt: skip
        if key in steady[-1]:
            emit(f"{name}: {key}", round(steady[-1][key], 6))


def rate_of(lines: list[dict[str, Any]], first: int = 2) -> float:
    """Samples a second of the median step, from the number `first` on."""
    return PROMPTS * SAMPLES / statistics.median(map(_seconds, lines[first:]))


def _seconds(line: dict[str, Any]) -> float:
    return float(line["seconds/total"] - line["seconds/evaluate"])


def main(path: Path, directory: Path) -> int:
    from rljob_api.v1alpha1.job import RLJob
    from rljob_trainer.local.run import run_local

    return run_local(RLJob.model_validate(json.loads(path.read_text(encoding="utf-8"))), directory, quiet=True)


if __name__ == "__main__":
    raise SystemExit(main(Path(sys.argv[1]), Path(sys.argv[2])))
