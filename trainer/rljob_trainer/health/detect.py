"""The detectors: pure functions of the recent rollouts' numbers.

With x the newest `window` rollouts' mean and y that of the `window` rollouts before them:

- RewardStalled: x − y < minImprovement, unless x ≥ ceiling
- EntropyCollapsed: x < min
- MismatchHigh: x > max
- ResponseLengthExploding: x > maxRatio · y and x ≥ minTokens

While a window is not full nothing is found. NonFinite is no matter of windows: the ranks find it before they apply
a step.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from math import isfinite
from typing import Any

from rljob_api.v1alpha1.health import HealthCondition, HealthThresholds


@dataclass(frozen=True, slots=True)
class Row:
    """Numbers of one rollout; None: not measured (or not finite)."""

    rollout: int
    """Number of the rollout, from 0."""
    reward: float | None = None
    """Mean over the samples."""
    entropy: float | None = None
    """Mean of the policy over trained tokens, in nats."""
    mismatch: float | None = None
    """Mean |log-probability of the trainer − that of the engine| over trained tokens, in nats."""
    length: float | None = None
    """Mean tokens of a response."""

    @classmethod
    def of(cls, rollout: int, values: Mapping[str, float]) -> "Row":
        """From a rollout's numbers as metrics.jsonl has them."""
        keys = {"reward": "reward", "entropy": "entropy", "mismatch": "logprob_diff_mean", "length": "response_length"}
        found = {name: values.get(key) for name, key in keys.items()}
        return cls(rollout, **{name: x if x is not None and isfinite(x) else None for name, x in found.items()})

    def to_json(self) -> dict[str, Any]:
        """As it is kept in a commit."""
        return {name: value for name, value in asdict(self).items() if value is not None}


@dataclass(frozen=True, slots=True)
class Finding:
    """A condition that holds."""

    condition: HealthCondition
    since: int
    """Number of the first rollout that shows the condition: commits of fewer rollouts are from before it."""
    message: str


def longest_window(thresholds: HealthThresholds) -> int:
    """Rollouts that the detectors look back at most."""
    t = thresholds
    return max(2 * t.reward_window, t.entropy_window, t.mismatch_window, 2 * t.length_window)


def detect(rows: Sequence[Row], thresholds: HealthThresholds) -> list[Finding]:
    """The conditions that hold after the last of `rows`, which are in the order of their rollouts."""
    return [finding for find in _DETECTORS if (finding := find(rows, thresholds)) is not None]


def _reward(rows: Sequence[Row], t: HealthThresholds) -> Finding | None:
    found = _two_windows(rows, lambda row: row.reward, t.reward_window)
    if found is None:
        return None
    before, after, since = found
    ceiling = t.reward_ceiling is not None and after >= t.reward_ceiling
    if ceiling or after - before >= t.reward_min_improvement:
        return None
    message = (
        f"mean reward {after:.4g} over the last {t.reward_window} rollouts, {before:.4g} over the {t.reward_window} "
        f"before (rewardMinImprovement {t.reward_min_improvement:g})"
    )
    return Finding("RewardStalled", since, message)


def _entropy(rows: Sequence[Row], t: HealthThresholds) -> Finding | None:
    found = _window(rows, lambda row: row.entropy, t.entropy_window)
    if found is None or found[0] >= t.entropy_min:
        return None
    mean, since = found
    message = f"mean entropy {mean:.4g} nats over the last {t.entropy_window} rollouts (entropyMin {t.entropy_min:g})"
    return Finding("EntropyCollapsed", since, message)


def _mismatch(rows: Sequence[Row], t: HealthThresholds) -> Finding | None:
    found = _window(rows, lambda row: row.mismatch, t.mismatch_window)
    if found is None or found[0] <= t.mismatch_max:
        return None
    mean, since = found
    message = (
        f"trainer and engine differ by {mean:.4g} nats per token over the last {t.mismatch_window} rollouts "
        f"(mismatchMax {t.mismatch_max:g})"
    )
    return Finding("MismatchHigh", since, message)


def _length(rows: Sequence[Row], t: HealthThresholds) -> Finding | None:
    found = _two_windows(rows, lambda row: row.length, t.length_window)
    if found is None:
        return None
    before, after, since = found
    if after < t.length_min_tokens or after <= t.length_max_ratio * before:
        return None
    message = (
        f"mean response {after:.0f} tokens over the last {t.length_window} rollouts, {before:.0f} over the "
        f"{t.length_window} before (lengthMaxRatio {t.length_max_ratio:g})"
    )
    return Finding("ResponseLengthExploding", since, message)


_DETECTORS: tuple[Callable[[Sequence[Row], HealthThresholds], Finding | None], ...] = (
    _reward,
    _entropy,
    _mismatch,
    _length,
)


def _window(rows: Sequence[Row], of: Callable[[Row], float | None], size: int) -> tuple[float, int] | None:
    """Mean over the newest `size` measured rollouts, and the number of the first of them."""
    newest = _measured(rows, of)[-size:]
    if len(newest) < size:
        return None
    return _mean(value for _, value in newest), newest[0][0]


def _two_windows(rows: Sequence[Row], of: Callable[[Row], float | None], size: int) -> tuple[float, float, int] | None:
    """Means over the `size` measured rollouts before the newest `size`, over these, and the first of these."""
    newest = _measured(rows, of)[-2 * size :]
    if len(newest) < 2 * size:
        return None
    before, after = newest[:size], newest[size:]
    return _mean(value for _, value in before), _mean(value for _, value in after), after[0][0]


def _measured(rows: Sequence[Row], of: Callable[[Row], float | None]) -> list[tuple[int, float]]:
    return [(row.rollout, value) for row in rows if (value := of(row)) is not None]


def _mean(values: Iterable[float]) -> float:
    found = list(values)
    return sum(found) / len(found)
