"""Rewards that could not be had: what went wrong, how often, and when it is more than single samples' bad luck."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from rljob_api.catalogue.rewards import VERIFIERS
from rljob_api.errors import UserError
from rljob_api.v1alpha1.reward import RewardFunction

ENOUGH = 32
"""Samples on all of which a verifier must fail to be given up: it fails by what the policy wrote, or by a label, so
that a few samples in a row prove nothing."""
_SHOWN = 3


@dataclass(frozen=True)
class Fault:
    """Why a function has no value for a sample."""

    what: str
    """Alike for samples that fail alike: `ValueError at my_rewards.py:14`."""
    text: str
    """Of this sample: `ValueError: no digit in 'x' (my_rewards.py:14)`."""
    away: bool = False
    """A service was not there, which is no mistake of the user's: later it may be."""


class RewardAwayError(RuntimeError):
    """A reward model gave no reward for any sample, since it could not be reached. Another attempt may reach it."""


@dataclass
class ScoreReport:
    """How scoring went: of one call, or of several added up."""

    samples: int = 0
    failures: int = 0
    """Samples that got `failureReward`, time-outs included."""
    timeouts: int = 0
    errors: Counter[str] = field(default_factory=Counter)
    """What went wrong, and how often, in the words of each sample."""
    kinds: Counter[str] = field(default_factory=Counter)
    """The same by `Fault.what`."""
    whole: int = 0
    """Samples that were generated to their end (or their limit): of others a reward need not make sense."""
    whole_failures: int = 0
    faults: dict[int, Counter[Fault]] = field(default_factory=dict)
    """By the place of the function: its faults on whole samples."""

    def count(self, faults: Sequence[tuple[int, Fault]], *, whole: bool, timed_out: bool) -> None:
        """Add a sample, and the faults of functions on it."""
        self.samples += 1
        self.whole += whole
        if not faults:
            return
        self.failures += 1
        self.timeouts += timed_out
        self.errors[faults[0][1].text] += 1
        self.kinds[faults[0][1].what] += 1
        if whole:
            self.whole_failures += 1
            for place, fault in faults:
                self.faults.setdefault(place, Counter())[fault] += 1

    def add(self, other: "ScoreReport") -> None:
        """Add what another call gave."""
        self.samples += other.samples
        self.failures += other.failures
        self.timeouts += other.timeouts
        self.errors.update(other.errors)
        self.kinds.update(other.kinds)
        self.whole += other.whole
        self.whole_failures += other.whole_failures
        for place, faults in other.faults.items():
            self.faults.setdefault(place, Counter()).update(faults)

    @property
    def all_failed(self) -> bool:
        """Whether there were whole samples, most of all, and none of them has a reward."""
        return 0 < self.whole == self.whole_failures and 2 * self.whole >= self.samples


def told(report: ScoreReport, of: str) -> str:
    """The failures of a report in a sentence; `of` says which samples: `rollout 7`."""
    return f"{report.failures} of {report.samples} samples of {of} have no reward: {kinds_told(report.kinds)}"


def kinds_told(kinds: Counter[str]) -> str:
    """`10 × ValueError at my_rewards.py:14, 2 × out of time`, the most frequent first."""
    shown = [f"{count} × {what}" for what, count in kinds.most_common(_SHOWN)]
    if more := kinds.total() - sum(count for _, count in kinds.most_common(_SHOWN)):
        shown.append(f"{more} × others")
    return ", ".join(shown)


def given_up(report: ScoreReport, functions: Sequence[RewardFunction], of: str) -> Exception | None:
    """What ends the run when no sample of a report has a reward; None when some have, or too few were scored.

    A UserError where it is the user's function, its answer or its time that is at fault; RewardAwayError where a
    service was away. Functions of ours are given up after ENOUGH samples.
    """
    if not report.all_failed:
        return None
    every = [place for place, faults in sorted(report.faults.items()) if faults.total() == report.whole]
    # One function that is wrong by itself says more than a service that happens to be away as well.
    for place in sorted(every, key=lambda place: any(fault.away for fault in report.faults[place])):
        if functions[place].name in VERIFIERS and report.whole < ENOUGH:
            return None
        return _ending(report.whole, report.faults[place], _named(place, functions[place]), of)
    together: Counter[Fault] = sum(report.faults.values(), Counter())
    if all(functions[place].name in VERIFIERS for place in report.faults) and report.whole < ENOUGH:
        return None
    return _ending(report.whole, together, "spec.reward.functions", of)


def _ending(samples: int, faults: Counter[Fault], who: str, of: str) -> Exception:
    (fault, count), *others = faults.most_common()
    often = f" ({count} times; {len(others)} other messages)" if others else ""
    each = f"each of the {samples} samples" if samples > 1 else "the only sample"
    sentence = f"{who} gives no reward for {each} of {of}: {fault.text}{often}"
    if any(fault.away for fault in faults):
        return RewardAwayError(sentence)
    return UserError(sentence, hint="a function that fails on some samples costs those alone: see docs/rewards.md")


def _named(place: int, function: RewardFunction) -> str:
    more = function.function if function.name == "custom" else function.url if function.name == "remote" else None
    return f"spec.reward.functions[{place}] ({function.name}{f', {more}' if more else ''})"


WINDOW = 10
"""Rollouts and evaluations without a failure after which failures are no longer told of."""


class Failures:
    """The failures of an attempt: which samples in a row have failed, and what is reported of them."""

    def __init__(self, functions: Iterable[RewardFunction], at_once: int) -> None:
        """`at_once`: samples of a rollout."""
        self._functions, self._at_once = list(functions), at_once
        self._row = ScoreReport()
        """The newest calls, as long as no sample has a reward."""
        self._rollout = ScoreReport()
        self.samples = self.failures = 0
        """Of the attempt, evaluations included."""
        self.last = ""
        """What was last told; empty once there were no failures for WINDOW times."""
        self._quiet = 0
        self._known: set[str] = set()

    def scored(self, report: ScoreReport, of: str) -> None:
        """Take in samples to be trained on. Raises (see `given_up`) once as many in a row as a rollout has failed."""
        self._rollout.add(report)
        if report.whole > report.whole_failures:
            self._row = ScoreReport()
        else:
            self._row.add(report)
        if self._row.samples >= self._at_once and (error := given_up(self._row, self._functions, of)) is not None:
            raise error

    def end_of_rollout(self, of: str) -> ScoreReport:
        """What `scored` has taken in since the last call; it is reported."""
        report, self._rollout = self._rollout, ScoreReport()
        self.tell(report, of)
        return report

    def evaluated(self, report: ScoreReport, of: str) -> None:
        """Take in a set that is complete. Raises (see `given_up`) when none of it has a reward: a score would be made
        up."""
        self.tell(report, of)
        if (error := given_up(report, self._functions, of)) is not None:
            raise error

    def tell(self, report: ScoreReport, of: str) -> None:
        """Count, and renew `last`."""
        self.samples += report.samples
        self.failures += report.failures
        self._quiet = 0 if report.failures else self._quiet + 1
        if report.failures:
            self.last = f"{told(report, of)}; {self.failures} of {self.samples} in this attempt"
        elif self._quiet >= WINDOW:
            self.last = ""

    def is_news(self, kinds: Iterable[str]) -> bool:
        """Whether one of them was not there before, in this attempt."""
        new = set(kinds) - self._known
        self._known |= new
        return bool(new)
