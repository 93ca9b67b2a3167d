"""The run in a few numbers."""

import importlib.metadata
import platform
import sys
from collections import Counter
from collections.abc import Iterable
from typing import Any

from rljob_api.v1alpha1.job import RLJob

from rljob_trainer.checkpoint.loop_state import LoopState
from rljob_trainer.metrics.jsonl import Record
from rljob_trainer.rewards.failures import kinds_told

_PACKAGES = ("rljob", "torch", "ray", "transformers", "numpy")


def versions() -> dict[str, str]:
    """Versions that the numbers depend on."""
    found = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def reward_failures(history: Iterable[Record]) -> dict[str, Any]:
    """Samples without a reward, evaluations included, and why: of the whole job, a step that was trained twice (lost
    with its attempt the first time) as it was trained last."""
    count, errors = 0, Counter[str]()
    for record in history:
        count += int(record.get("reward_failures") or 0)
        errors.update(record.get("reward_errors") or {})
    return {"samples": count, "errors": dict(errors.most_common())}


def summarize(
    job: RLJob,
    state: LoopState,
    *,
    sft_steps: int,
    total_steps: int,
    digest: str | None,
    peak_memory: int | None,
    history: Iterable[Record] = (),
) -> dict[str, Any]:
    """Content of summary.json. `em_*` are scores of the first evaluation set; all are in `evaluations`. `history`: the
    job's metrics, of all attempts."""
    sets = [dataset.name for dataset in job.spec.evaluation.datasets]

    def first(moment: str) -> float | None:
        scores = state.evaluations.get(f"{sets[0]}/{moment}") if sets else None
        return None if scores is None else scores["score"]

    generate = state.seconds.get("generate", 0.0)
    return {
        "job": job.metadata.name,
        "mode": job.spec.mode,
        "state": "Succeeded" if state.step == total_steps or state.stopped_early else "Incomplete",
        "early_stop": state.early_stop if state.stopped_early else None,
        "seed": job.spec.seed,
        "steps": state.step,
        "total_steps": total_steps,
        "sft_steps": sft_steps,
        "rl_steps": state.step - sft_steps if job.spec.mode == "Train" else 0,
        "rollouts": state.rollout,
        "samples_made": state.samples_made,
        "samples_kept": state.samples_kept,
        "em_after_sft": first("after_sft"),
        "em_after_grpo": first("final") if state.rollout and job.spec.mode == "Train" else None,
        "em_without_retriever": first("without_retriever"),
        "evaluations": state.evaluations,
        "reward_failures": reward_failures(history),
        "tokens_generated": state.tokens_generated,
        "tokens_per_second": state.tokens_generated / generate if generate else None,
        "seconds": sum(state.seconds.get(stage, 0.0) for stage in ("sft", "rl", "evaluate")),
        "stage_seconds": dict(state.seconds),
        "peak_memory_bytes": peak_memory,
        "weights_digest": digest,
        "world_size": job.spec.trainer.replicas * job.spec.trainer.ranks_per_replica,
        "engines": job.spec.rollout.replicas,
        "threads_per_rank": job.spec.trainer.threads_per_rank,
        "machine": platform.machine(),
        "versions": versions(),
    }


def terminal_lines(summary: dict[str, Any]) -> list[str]:
    """The summary for a person."""
    lines = [f"{summary['job']}: {summary['state']}, {summary['steps']} of {summary['total_steps']} steps"]
    if stopped := summary.get("early_stop"):
        lines.append(f"  {'target reached':<36} {stopped['target']}: {stopped['value']:.4g}")
    names = {
        "em_after_sft": "held-out score after SFT",
        "em_after_grpo": "held-out score after GRPO",
        "em_without_retriever": "the same with unrelated documents",
    }
    lines += [f"  {text:<36} {summary[key]:.3f}" for key, text in names.items() if summary.get(key) is not None]
    if summary.get("mode") == "Evaluate":
        lines += [f"  {name:<36} {scores['score']:.3f}" for name, scores in summary["evaluations"].items()]
    if summary.get("mode") == "Generate":
        lines.append(f"  {'samples written':<36} {summary['samples_kept']} of {summary['samples_made']}")
    if (failed := summary.get("reward_failures")) and failed["samples"]:
        why = kinds_told(Counter(failed["errors"]))
        lines.append(f"  {'samples without a reward':<36} {failed['samples']} ({why})")
    if summary["tokens_per_second"]:
        lines.append(f"  {'tokens generated per second':<36} {summary['tokens_per_second']:.0f}")
    stages = summary["stage_seconds"]
    shown = ", ".join(f"{stage} {stages[stage]:.0f}" for stage in ("sft", "rl", "evaluate") if stage in stages)
    lines.append(f"  {'seconds':<36} {summary['seconds']:.0f} ({shown})")
    if summary.get("peak_memory_bytes"):
        lines.append(f"  {'peak memory':<36} {summary['peak_memory_bytes'] / 2**30:.1f} GiB")
    return lines


def print_lines(lines: list[str]) -> None:
    """Write lines to standard output."""
    sys.stdout.write("\n".join(lines) + "\n")
    sys.stdout.flush()
