"""Prometheus endpoints of the driver, the ranks and the engines.

Names follow the Prometheus conventions (base units, `_total` for counters). The job's name is the label `job_name`:
`job` would collide with the label that Prometheus itself puts on every target.
"""

import logging
import os
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from prometheus_client import CollectorRegistry, Counter, Gauge, Metric, disable_created_metrics
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.process_collector import ProcessCollector
from prometheus_client.registry import Collector
from rljob_api.contract import environment_variables as variables

from rljob_trainer.metrics.catalog import DRIVER, OF_ROLE
from rljob_trainer.metrics.goodput import GpuSeconds
from rljob_trainer.metrics.labelled import Labelled
from rljob_trainer.metrics.shared_port import SharedPort, common_folder

logger = logging.getLogger(__name__)
MOST_NAMES = 32
"""Sources or reward components told apart; the label of further ones is `other`: data may hold any number."""
OTHER = "other"
_BY_NAME = {
    "reward/": ("rljob_reward_component_mean", "Mean of a component of the reward, last rollout.", "component"),
    "reward_by_source/": ("rljob_source_reward_mean", "Mean reward by data source, last rollout.", "source"),
}
disable_created_metrics()  # type: ignore[no-untyped-call]  # a second series for every counter, which nothing reads


def serve(registry: CollectorRegistry, port: int, job_dir: Path, *, strict: bool = False) -> int:
    """Serve the driver's `registry` at `port`, and with it what ranks and engines beside it tell.

    A busy port is replaced by a free one unless `strict`. Returns the port, 0 for none. Raises OSError when `strict`
    and the port is busy.
    """
    if port == 0:
        return 0
    shared = SharedPort(registry, common_folder(job_dir))
    try:
        return shared.serve_all(port)
    except OSError:
        if strict:
            raise
        free = shared.serve_all(0)
        logger.warning("metrics port %d is busy, serving at %d", port, free)
        return free


def serve_worker(registry: CollectorRegistry, port: int, job_dir: str | Path) -> int:
    """Serve a rank's or engine's `registry`: in a pod at `port`, together with those of its other processes; elsewhere
    the driver does. Returns the port that is this process's own, 0 for none."""
    if port == 0:
        return 0
    shared = SharedPort(registry, common_folder(job_dir))
    if variables.NAME in os.environ:
        shared.serve_all_once_free(port)
    return shared.own_port


class DriverMetrics:
    """What the driver tells Prometheus."""

    def __init__(self, job_name: str) -> None:
        self.registry = CollectorRegistry()
        self.registry.register(_process(job_name, "driver", 0))
        labels = ["job_name"]
        self._job = job_name
        self._gauges = {
            series.key: Gauge(series.name, series.help, labels, registry=self.registry) for series in DRIVER
        }
        self._by_name = {
            prefix: Gauge(name, text, [*labels, label], registry=self.registry)
            for prefix, (name, text, label) in _BY_NAME.items()
        }
        self._names: dict[str, set[str]] = {prefix: set() for prefix in _BY_NAME}
        self._step = Gauge("rljob_step", "Optimizer steps trained, SFT included.", labels, registry=self.registry)
        self._total = Gauge("rljob_steps_planned", "Optimizer steps asked for.", labels, registry=self.registry)
        self._rollout = Gauge("rljob_rollout", "Rollouts trained.", labels, registry=self.registry)
        self._version = Gauge(
            "rljob_policy_version", "Version of the weights that the engines serve.", labels, registry=self.registry
        )
        self._progress = Gauge(
            "rljob_last_progress_timestamp_seconds",
            "When the run last got on: a step, a rollout, an evaluation or a commit (Unix time).",
            labels, registry=self.registry,
        )  # fmt: skip
        self._stage = Gauge(
            "rljob_stage", "1 for the stage that the run is in.", [*labels, "stage"], registry=self.registry
        )
        self._phase = Counter(
            "rljob_phase_seconds", "Seconds by phase of the loop.", [*labels, "phase"], registry=self.registry
        )
        self._gpu = Counter(
            "rljob_gpu_seconds",
            "GPU time by group and activity; ranks and engines count where there are no GPUs.",
            [*labels, "group", "activity"], registry=self.registry,
        )  # fmt: skip
        self._evaluation = Gauge(
            "rljob_evaluation_score", "Last score of an evaluation set.", [*labels, "set"], registry=self.registry
        )
        self._tokens = Counter("rljob_generated_tokens", "Tokens generated.", labels, registry=self.registry)
        self._trained = Counter(
            "rljob_trained_tokens", "Tokens trained on, by stage.", [*labels, "stage"], registry=self.registry
        )
        self._commits = Counter("rljob_commits", "Commits written.", labels, registry=self.registry)
        self._restarts = Counter("rljob_engine_restarts", "Engines replaced.", labels, registry=self.registry)
        self._failed = Counter(
            "rljob_failed_samples", "Samples that failed or were cut off.", [*labels, "status"], registry=self.registry
        )
        self._reward_failures = Counter(
            "rljob_reward_failures",
            "Samples whose reward could not be had, those of evaluations included.",
            labels, registry=self.registry,
        )  # fmt: skip
        for counter in (self._tokens, self._commits, self._restarts, self._reward_failures):
            counter.labels(job_name)
        for status in ("truncated", "failed", "aborted"):
            self._failed.labels(job_name, status)
        self._where: tuple[int, int, int] | None = None

    def steps(self, step: int, total: int, rollout: int, policy_version: int) -> None:
        """Where the run stands."""
        if (step, rollout, policy_version) != self._where:
            self._where = (step, rollout, policy_version)
            self.moved()
        self._step.labels(self._job).set(step)
        self._total.labels(self._job).set(total)
        self._rollout.labels(self._job).set(rollout)
        self._version.labels(self._job).set(policy_version)

    def values(self, values: Mapping[str, float]) -> None:
        """Set the gauges that `values` names; other keys are left out."""
        for key, gauge in self._gauges.items():
            if key in values:
                gauge.labels(self._job).set(values[key])
        for prefix, gauge in self._by_name.items():
            found = {key.removeprefix(prefix): value for key, value in values.items() if key.startswith(prefix)}
            for name, value in found.items():
                gauge.labels(self._job, self._bounded(prefix, name)).set(value)

    def _bounded(self, prefix: str, name: str) -> str:
        known = self._names[prefix]
        if name not in known and len(known) >= MOST_NAMES:
            return OTHER
        known.add(name)
        return name

    def moved(self) -> None:
        """The run got on."""
        self._progress.labels(self._job).set(time.time())

    def stage(self, name: str) -> None:
        """The stage that the run is in from here on."""
        self._stage.clear()
        self._stage.labels(self._job, name).set(1)

    def trained(self, stage: str, tokens: float) -> None:
        """Count tokens that were trained on."""
        self._trained.labels(self._job, stage).inc(tokens)

    def phases(self, seconds: Mapping[str, float], gpu: GpuSeconds) -> None:
        """Add the seconds of each phase, and the GPU seconds of each group and activity."""
        for phase, value in seconds.items():
            if phase != "total":
                self._phase.labels(self._job, phase).inc(value)
        for (group, activity), value in gpu.items():
            self._gpu.labels(self._job, group, activity).inc(value)

    def evaluation(self, name: str, score: float) -> None:
        """Last score of the evaluation set `name`."""
        self.moved()
        self._evaluation.labels(self._job, name).set(score)

    def generated(self, tokens: int, statuses: Mapping[str, int]) -> None:
        """Count generated tokens, and samples by a status other than completed."""
        self._tokens.labels(self._job).inc(tokens)
        for status, count in statuses.items():
            if status != "completed":
                self._failed.labels(self._job, status).inc(count)

    def committed(self) -> None:
        """Count a commit."""
        self.moved()
        self._commits.labels(self._job).inc()

    def reward_failures(self, count: int) -> None:
        """Count samples whose reward could not be had."""
        self._reward_failures.labels(self._job).inc(count)

    def engine_restarted(self) -> None:
        """Count a replaced engine."""
        self._restarts.labels(self._job).inc()


class ProcessMetrics(Collector):
    """What a rank or an engine tells Prometheus: the numbers of `catalog` that it has."""

    def __init__(self, job_name: str, role: str, index: int) -> None:
        """`role`: rank or engine."""
        self._role, self._labels = role, {"job_name": job_name, "index": str(index)}
        self._values: dict[str, float] = {}
        self._calls: dict[str, tuple[int, float]] = {}
        self.registry = CollectorRegistry()
        self.registry.register(_process(job_name, role, index))
        self.registry.register(self)

    def set(self, values: Mapping[str, float]) -> None:
        """Keep the numbers of `values`. Those that the catalog does not name are not told."""
        self._values = {**self._values, **values}

    @contextmanager
    def call(self, name: str) -> Iterator[None]:
        """Count a call of this process and its seconds."""
        start = time.monotonic()
        try:
            yield
        finally:
            count, seconds = self._calls.get(name, (0, 0.0))
            self._calls[name] = count + 1, seconds + time.monotonic() - start

    def collect(self) -> Iterable[Metric]:
        """See prometheus_client."""
        for series in OF_ROLE[self._role]:
            if series.key in self._values:
                kind = CounterMetricFamily if series.kind == "counter" else GaugeMetricFamily
                family = kind(series.name, series.help, labels=list(self._labels))
                family.add_metric(list(self._labels.values()), self._values[series.key])
                yield family
        if self._calls:
            names = [*self._labels, "call"]
            calls = CounterMetricFamily(f"rljob_{self._role}_calls", "Calls by name.", labels=names)
            seconds = CounterMetricFamily(f"rljob_{self._role}_call_seconds", "Seconds in calls.", labels=names)
            for name, (count, spent) in list(self._calls.items()):
                calls.add_metric([*self._labels.values(), name], count)
                seconds.add_metric([*self._labels.values(), name], spent)
            yield from (calls, seconds)


def _process(job_name: str, role: str, index: int) -> Collector:
    """CPU, memory and files of this process, labelled: several processes share a page."""
    return Labelled(ProcessCollector(registry=None), job_name=job_name, role=role, index=str(index))
