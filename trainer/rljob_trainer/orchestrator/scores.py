"""Scores of an evaluation set."""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from math import prod

from rljob.types import Sample

from rljob_trainer.rollout.samples import score_of


def pass_at_k(n: int, correct: int, k: int) -> float:
    """Chance that at least one of k samples is right, estimated from `correct` right ones of n ≥ k.

    1 − C(n − c, k) ⁄ C(n, k), unbiased (Chen et al. 2021, arXiv:2107.03374, equation 1), as a product that does not
    overflow: C(n − c, k) ⁄ C(n, k) = ∏ (1 − k ⁄ i) over i = n − c + 1 … n.
    """
    if not 0 <= correct <= n or not 1 <= k <= n:
        raise ValueError(f"pass@{k} of {correct} right among {n}")
    if n - correct < k:
        return 1.0
    return 1.0 - prod(1.0 - k / i for i in range(n - correct + 1, n + 1))


def ks(n: int) -> list[int]:
    """The k that pass@k is reported for: powers of two below n, and n."""
    return [*(2**power for power in range(n.bit_length()) if 2**power < n), n]


def scores(samples: Sequence[Sample], em: str | None) -> dict[str, float]:
    """Scores of an evaluated set; every sample counts, a failed one as wrong.

    `score`: the mean over all samples (mean@n): the share of right ones where the reward has a function that tells
    right from wrong (`em` is its name), else the mean reward. `score/<source>`: the same by source, when there are
    several. `pass@k`, with several samples per prompt: the mean over prompts of the unbiased estimate. `reward`,
    `response_length` (tokens), counters of the generate function: means. `failed`, `truncated`: shares.
    """
    values = {"score": _mean(score_of(sample, em) for sample in samples)}
    values |= {
        "reward": _mean(sample.reward or 0.0 for sample in samples),
        "response_length": _mean(len(sample.response_ids) for sample in samples),
        "samples": float(len(samples)),
        "failed": _mean(sample.status in ("failed", "aborted") for sample in samples),
        "truncated": _mean(sample.status == "truncated" for sample in samples),
    }
    by_source: dict[str, list[float]] = defaultdict(list)
    right: dict[int, list[bool]] = defaultdict(list)
    for sample in samples:
        by_source[sample.source].append(score_of(sample, em))
        right[sample.group].append(score_of(sample, em) >= 1.0)
    if len(by_source) > 1:
        values |= {f"score/{source}": _mean(found) for source, found in sorted(by_source.items())}
    n = min(map(len, right.values()), default=0)
    if n > 1:
        values["prompts"] = float(len(right))
        values |= {f"pass@{k}": _mean(pass_at_k(len(g), sum(g), k) for g in right.values()) for k in ks(n)}
    for key in ("turns", "searches"):
        values[key] = _mean(float(sample.info.get(key, 0.0)) for sample in samples)
    return values


def _mean(numbers: Iterable[float]) -> float:
    found = list(numbers)
    return sum(found) / max(len(found), 1)
