"""Generating while training against taking turns, on the same two GPUs: one for the trainer, one for the engine.

`python -m benchmarks.gpu.async_rate [--new-tokens 512]`: the whole run of `runs.job`, first `disaggregated` (engine and
trainer wait for one another), then `async` one step off. Twice the rate is the limit, where both halves take as long;
`--new-tokens` moves the balance, and the lines tell it.
"""

import argparse
import statistics
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.gpu.common import SHAPES, emit, section
from benchmarks.gpu.runs import NEW_TOKENS, TINY, job, rate_of, run, tell_steps

PLACEMENTS: dict[str, dict[str, Any]] = {
    "disaggregated": {"type": "disaggregated"},
    "async": {"type": "async", "maxStaleness": 1},
}


def lines_of(directory: Path, placement: str, options: argparse.Namespace) -> list[dict[str, Any]]:
    """What the product's driver records in one placement."""
    target = directory / placement
    spec: dict[str, Any] = {
        "trainer": {"backend": options.backend, "maxTokensPerGpu": options.max_tokens},
        "algorithm": {"tis": {"enabled": True}},
    }
    if options.cpu:
        spec |= {name: dict(value) for name, value in TINY.items()}
    made = job(target, options.shape, rollouts=options.rollouts, **spec)
    made["spec"]["placement"] = PLACEMENTS[placement]
    if not options.cpu:
        made["spec"]["rollout"]["sampling"]["maxResponseLength"] = options.new_tokens
        # An engine that has its GPU for itself. How large its CUDA graphs are is the product's to say.
        made["spec"]["rollout"]["engineArgs"]["mem_fraction_static"] = 0.8
        del made["spec"]["rollout"]["engineArgs"]["cuda_graph_max_bs_decode"]
    lines = run("benchmarks.gpu.runs", made, target, f"async-rate-{placement}.log", options.limit)
    tell_steps(placement, lines)
    emit(f"{placement}: waited for samples, all", [round(line["seconds/generate"], 2) for line in lines], "s")
    emit(f"{placement}: staleness, all", [round(line["staleness"], 3) for line in lines])
    return lines


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--shape", default="0.5B", choices=list(SHAPES))
    parser.add_argument("--backend", default="fsdp", choices=["fsdp", "megatron"])
    parser.add_argument("--rollouts", type=int, default=8)
    parser.add_argument("--new-tokens", type=int, default=NEW_TOKENS)
    parser.add_argument("--max-tokens", type=int, default=16384, help="tokens of a forward pass")
    parser.add_argument("--folder", type=Path, help="where the model is written, or lies already")
    parser.add_argument("--limit", type=float, default=300.0, help="seconds for each run")
    parser.add_argument("--cpu", action="store_true", help="try the script: tiny model, torch engine")
    options = parser.parse_args()
    options.shape = "tiny" if options.cpu else options.shape
    directory = options.folder or Path(tempfile.mkdtemp(prefix="async-rate-"))
    directory.mkdir(parents=True, exist_ok=True)
    found: dict[str, list[dict[str, Any]]] = {}
    for placement in PLACEMENTS:
        with section(placement):
            found[placement] = lines_of(directory, placement, options)
    if len(found) < len(PLACEMENTS):
        return 1
    turns = found["disaggregated"][2:]
    generating, rest = (
        statistics.median(sum(line[f"seconds/{phase}"] for phase in phases) for line in turns)
        for phases in (("generate",), ("reward", "train", "sync"))
    )
    emit("balance: generation ÷ the rest, in turns", round(generating / rest, 3))
    emit("best possible", round((generating + rest) / max(generating, rest), 3), "×")
    ratio = rate_of(found["async"]) / rate_of(found["disaggregated"])
    emit("async ÷ disaggregated", round(ratio, 3), "×", 1.5)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
