"""Scoring samples by `spec.reward`: the weighted sum of its functions, each call within its time limit."""

import math
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from types import TracebackType
from typing import Self

from rljob.types import Sample
from rljob_api.catalogue.rewards import VERIFIERS
from rljob_api.errors import UserError
from rljob_api.v1alpha1.reward import RewardSpec

from rljob_trainer.rewards.arguments import Scorer
from rljob_trainer.rewards.failures import Fault, ScoreReport
from rljob_trainer.rewards.functions import build, verifier
from rljob_trainer.rewards.labels import read_label
from rljob_trainer.rewards.pool import Outcome, WorkerFunction, WorkerPool
from rljob_trainer.rewards.remote import RemoteReward

OVERFLOW = "the weighted sum of the rewards is not finite"
ERROR = "reward_error"
"""Key of `Sample.info` that says why a sample got `failureReward`."""


class RewardScorer:
    """Scores rollouts; keeps the processes of custom functions and verifiers. A context manager.

    Rewards that are linear in the response run here, verifiers and custom functions in `workers` processes, remote
    ones elsewhere. A custom or remote function gives a number, or a dict of numbers: then its value is the entry
    `reward` when there is one, else the sum. Raises UserError, at construction, for functions that do not exist or
    cannot be given their arguments.
    """

    def __init__(self, spec: RewardSpec) -> None:
        self.spec = spec
        self._labels: list[str] = []
        self._built_in: dict[int, Scorer] = {}
        self._verifiers: dict[int, str] = {}
        self._remote: dict[int, RemoteReward] = {}
        in_workers: dict[int, WorkerFunction] = {}
        for place, function in enumerate(spec.functions):
            where = f"spec.reward.functions[{place}]"
            label = function.label or function.name
            self._labels.append(label if label not in self._labels else f"{label}-{place + 1}")
            if function.name == "custom":
                if function.function is None:
                    raise UserError(f"{where}.function is required for a custom reward", hint="package.module:name")
                in_workers[place] = WorkerFunction(function.function, f"{where}.function", function.args)
            elif function.name in VERIFIERS:
                in_workers[place] = verifier(function, where)
                self._verifiers[place] = function.name
            elif function.name == "remote":
                self._remote[place] = RemoteReward(function, place, spec.timeout_seconds)
            else:
                self._built_in[place] = build(function, where)
        self._in_workers = list(in_workers)
        functions = list(in_workers.values())
        self._pool = WorkerPool(functions, spec.workers, spec.timeout_seconds) if functions else None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """End the processes that score."""
        if self._pool is not None:
            self._pool.close()

    def score(self, samples: Sequence[Sample]) -> ScoreReport:
        """Set `reward` and `reward_parts` (the unweighted value of each function) of every sample.

        A sample one of whose functions fails, runs out of time or returns no finite number, or whose weighted sum is
        not finite, gets `failureReward`, no parts, and `info["reward_error"]`. A label that a built-in function cannot
        read raises UserError.
        """
        for place, name in self._verifiers.items():
            for sample in samples:
                with self._readable(place, sample):
                    read_label(name, sample.label)
        report = ScoreReport()
        for sample, outcomes in zip(samples, self._outcomes(samples), strict=True):
            faults = [(place, fault) for place, its in outcomes.items() if (fault := its.fault) is not None]
            total, parts = (0.0, {}) if faults else self._sum(sample, outcomes)
            if not math.isfinite(total):
                faults = [(self._largest(parts), Fault(OVERFLOW, f"{OVERFLOW}: {parts}"))]
            timed_out = any(outcome.timed_out for outcome in outcomes.values())
            report.count(faults, whole=sample.status in ("completed", "truncated"), timed_out=timed_out)
            sample.info.pop(ERROR, None)
            if faults:
                sample.reward, sample.reward_parts = self.spec.failure_reward, {}
                sample.info[ERROR] = faults[0][1].text
            else:
                sample.reward, sample.reward_parts = total, parts
        return report

    def _outcomes(self, samples: Sequence[Sample]) -> list[dict[int, Outcome]]:
        """What workers and remote models say: of every sample, by the place of the function."""
        outcomes: list[dict[int, Outcome]] = [{} for _ in samples]
        if not samples or not (self._pool or self._remote):
            return outcomes
        with ThreadPoolExecutor(len(self._remote) + 1) as threads:
            asked = {place: threads.submit(remote.run, samples) for place, remote in self._remote.items()}
            answers = self._pool.run(samples) if self._pool is not None else [[] for _ in samples]
            for given, answer in zip(outcomes, answers, strict=True):
                given.update(zip(self._in_workers, answer, strict=False))
            for place, future in asked.items():
                for given, outcome in zip(outcomes, future.result(), strict=True):
                    given[place] = outcome
        return outcomes

    @contextmanager
    def _readable(self, place: int, sample: Sample) -> Iterator[None]:
        """A label that cannot be read is the user's to correct, whatever function notices it."""
        try:
            yield
        except ValueError as error:
            raise UserError(
                f"spec.reward.functions[{place}] ({self.spec.functions[place].name}), row {sample.row} of the data: "
                f"{error}",
                hint="check spec.data.train.labelKey",
            ) from error

    def _largest(self, parts: dict[str, float]) -> int:
        """The place of the function with the largest weighted value."""
        sizes = [
            abs(function.weight * parts[label])
            for function, label in zip(self.spec.functions, self._labels, strict=True)
        ]
        return sizes.index(max(sizes))

    def _sum(self, sample: Sample, outcomes: dict[int, Outcome]) -> tuple[float, dict[str, float]]:
        """The weighted sum, not finite where it overflows, and the unweighted values."""
        total = 0.0
        parts: dict[str, float] = {}
        for place, (function, label) in enumerate(zip(self.spec.functions, self._labels, strict=True)):
            if place in self._built_in:
                with self._readable(place, sample):
                    value = float(self._built_in[place](sample))
            else:
                result = outcomes[place].value
                assert result is not None
                value = result if isinstance(result, float) else _value(result)
                if isinstance(result, dict):
                    parts |= {f"{label}/{key}": part for key, part in result.items()}
            parts[label] = value
            total += function.weight * value
        return total, parts


def score(samples: Sequence[Sample], spec: RewardSpec) -> ScoreReport:
    """Score once; see `RewardScorer`, which keeps its processes between calls."""
    with RewardScorer(spec) as scorer:
        return scorer.score(samples)


def _value(parts: dict[str, float]) -> float:
    if "reward" in parts:
        return parts["reward"]
    try:
        return math.fsum(parts.values())
    except OverflowError:
        return math.inf
