"""The quickstart with three seeds, world included: does it learn, how long does it take, how much memory?"""

import json
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rljob_api.manifest.load import load
from rljob_trainer.local.run import run_local

ROOT = Path(__file__).resolve().parents[1]
SEEDS = (0, 1, 2)
SFT_AT_MOST, GRPO_AT_LEAST, CHANCE_AT_MOST = 0.5, 0.85, 0.02
SECONDS_AT_MOST, GIGABYTES_AT_MOST = 480.0, 6.0


def run(seed: int, directory: Path) -> dict[str, Any]:
    """The summary of one run."""
    job = load(ROOT / "examples/quickstart.yaml")
    job.spec.seed = seed
    assert job.spec.data.prepare is not None
    job.spec.data.prepare.args["seed"] = seed
    code = run_local(job, directory, quiet=True)
    if code != 0:
        raise RuntimeError(f"seed {seed}: the run ended with exit code {code}; see {directory}")
    summary: dict[str, Any] = json.loads((directory / "summary.json").read_text())
    return summary


def lines(seed: int, summary: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """What was measured, beside what was asked for."""
    stages = summary["stage_seconds"]
    seconds = stages["sft"] + stages["rl"]
    memory = summary["peak_memory_bytes"] / 1e9
    sft, grpo, alone = summary["em_after_sft"], summary["em_after_grpo"], summary["em_without_retriever"]
    name = f"quickstart_seed{seed}"
    yield {"name": f"{name}_em_after_sft", "value": sft, "unit": "EM", "goal": SFT_AT_MOST, "met": sft <= SFT_AT_MOST}
    yield {
        "name": f"{name}_em_after_grpo", "value": grpo, "unit": "EM", "goal": GRPO_AT_LEAST,
        "met": grpo >= GRPO_AT_LEAST,
    }  # fmt: skip
    yield {
        "name": f"{name}_em_without_retriever", "value": alone, "unit": "EM", "goal": CHANCE_AT_MOST,
        "met": alone <= CHANCE_AT_MOST,
    }  # fmt: skip
    yield {
        "name": f"{name}_sft_and_grpo_seconds", "value": round(seconds, 1), "unit": "s", "goal": SECONDS_AT_MOST,
        "met": seconds <= SECONDS_AT_MOST,
    }  # fmt: skip
    yield {
        "name": f"{name}_peak_memory", "value": round(memory, 2), "unit": "GB", "goal": GIGABYTES_AT_MOST,
        "met": memory <= GIGABYTES_AT_MOST,
    }  # fmt: skip
    yield {
        "name": f"{name}_generated_tokens_per_second", "value": round(summary["tokens_per_second"], 1),
        "unit": "tokens/s", "goal": None, "met": None,
    }  # fmt: skip


def main() -> int:
    """Print the lines of every seed."""
    with tempfile.TemporaryDirectory(prefix="rljob-quickstart-") as directory:
        for seed in SEEDS:
            for line in lines(seed, run(seed, Path(directory) / f"seed-{seed}")):
                print(json.dumps(line), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
