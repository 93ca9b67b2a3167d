"""How evenly `trainer.balanceData` shares a long-tailed batch out to data-parallel ranks.

A step lasts as long as its slowest rank: largest ÷ mean work of a rank is the factor by which a step is longer than it
need be. Lengths are drawn log-normal (median 1100 tokens, cut at 16384), as responses of reasoning models are.
"""

import json
import random
import statistics
import sys
import time

from rljob_trainer.training.balance import shares, work

GOAL = 1.05
BATCHES = 20
SETTINGS = ((8, 128), (8, 512), (32, 1024), (64, 2048))
"""Ranks, and samples per optimizer step."""


def lengths(seed: int, count: int) -> list[int]:
    """Lengths of a batch in tokens."""
    draw = random.Random(seed)
    return [min(16_384, int(draw.lognormvariate(7.0, 0.8)) + 1) for _ in range(count)]


def unevenness(sizes: list[int], ranks: int, *, balanced: bool) -> float:
    """Largest ÷ mean work of a rank."""
    loads = [sum(work(sizes[number]) for number in own) for own in shares(sizes, ranks, balanced=balanced)]
    return max(loads) / (sum(loads) / ranks)


def line(name: str, value: float, unit: str, goal: str | None = None, met: bool | None = None) -> None:
    """Print a result."""
    print(json.dumps({"name": name, "value": round(value, 4), "unit": unit, "goal": goal, "met": met}), flush=True)


def main() -> int:
    """Print the lines. Exit code 1 when the goal is missed."""
    good = True
    for ranks, count in SETTINGS:
        batches = [lengths(seed, count) for seed in range(BATCHES)]
        began = time.perf_counter()
        balanced = [unevenness(batch, ranks, balanced=True) for batch in batches]
        seconds = (time.perf_counter() - began) / BATCHES
        in_turn = statistics.mean(unevenness(batch, ranks, balanced=False) for batch in batches)
        name, worst = f"balance of {count} samples over {ranks} ranks", max(balanced)
        good = good and worst <= GOAL
        line(f"{name}: largest / mean work, worst of {BATCHES}", worst, "ratio", f"<= {GOAL}", worst <= GOAL)
        line(f"{name}: in turn, for comparison", in_turn, "ratio")
        line(f"{name}: seconds to share out", seconds, "s")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
