"""The operator's metrics, for Prometheus."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, get_args

from prometheus_client import REGISTRY, CollectorRegistry, Counter, Gauge, Histogram, Metric, disable_created_metrics
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector
from rljob_api.v1alpha1.health import HealthCondition

disable_created_metrics()  # type: ignore[no-untyped-call]  # a second series for every counter, which nothing reads
PHASES = (
    "Pending", "Preparing", "Queued", "Starting", "Running", "Suspending", "Suspended", "Retrying", "Succeeded",
    "Failed",
)  # fmt: skip
PROBLEMS = frozenset({*get_args(HealthCondition), "RewardFailing", "Stalled"})
"""Conditions that tell of a problem when they hold."""
_BUCKETS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)


class Metrics:
    """Counters, gauges and histograms of one operator process."""

    def __init__(self, registry: CollectorRegistry = REGISTRY) -> None:
        self.registry = registry
        self.reconciles = Counter(
            "rljob_operator_reconcile_total", "Reconciles by result (ok, error, gone).", ["result"], registry=registry
        )
        self.seconds = Histogram(
            "rljob_operator_reconcile_seconds", "Duration of a reconcile.", buckets=_BUCKETS, registry=registry
        )
        self.errors = Counter(
            "rljob_operator_errors_total", "Failed reconciles by kind of error.", ["error"], registry=registry
        )
        self.depth = Gauge("rljob_operator_queue_depth", "Jobs that are due and wait for a worker.", registry=registry)
        self.jobs = Gauge("rljob_operator_jobs", "RLJobs by phase.", ["phase"], registry=registry)
        self.canary_age = Gauge(
            "rljob_operator_canary_age_seconds", "Seconds since the queue last did work.", registry=registry
        )
        self._phases: dict[tuple[str, str], str] = {}
        self._problems: dict[tuple[str, str], tuple[str, ...]] = {}
        self._refused: dict[tuple[str, str], None] = {}
        registry.register(_Jobs(self._phases, self._problems, self._refused))
        for phase in PHASES:
            self.jobs.labels(phase).set(0)

    def job(self, key: tuple[str, str], status: Mapping[str, Any] | None) -> None:
        """What a job's status says, as far as it can be read; None: the job is gone."""
        phase = None if status is None else _phase(status)
        said = dict(_conditions(status))
        if problems := tuple(kind for kind, holds in said.items() if kind in PROBLEMS and holds == "True"):
            self._problems[key] = problems
        else:
            self._problems.pop(key, None)
        if said.get("ResourcesApplied") == "False":
            self._refused[key] = None
        else:
            self._refused.pop(key, None)
        if self._phases.get(key) == phase:
            return
        if (old := self._phases.pop(key, None)) is not None:
            self.jobs.labels(old).dec()
        if phase is not None:
            self._phases[key] = phase
            self.jobs.labels(phase).inc()


def _phase(status: Mapping[str, Any]) -> str:
    phase = status.get("phase") if isinstance(status, Mapping) else None
    return phase if isinstance(phase, str) else "Pending"


def _conditions(status: Mapping[str, Any] | None) -> Iterator[tuple[str, Any]]:
    """Type and status of each condition that can be read."""
    conditions = status.get("conditions") if isinstance(status, Mapping) else None
    for condition in conditions if isinstance(conditions, list) else ():
        its = condition if isinstance(condition, Mapping) else {}
        if isinstance(kind := its.get("type"), str):
            yield kind, its.get("status")


class _Jobs(Collector):
    """One series a job, made when it is asked for: thousands of jobs cost no memory in between."""

    def __init__(
        self,
        phases: dict[tuple[str, str], str],
        problems: dict[tuple[str, str], tuple[str, ...]],
        refused: Iterable[tuple[str, str]],
    ) -> None:
        self._phases, self._problems, self._refused = phases, problems, refused

    def collect(self) -> Iterable[Metric]:
        """See prometheus_client. `namespace` would collide with the label that Prometheus puts on the operator."""
        family = GaugeMetricFamily(
            "rljob_job_phase", "1 for the phase that a job is in.", labels=["job_namespace", "job_name", "phase"]
        )
        for (namespace, name), phase in list(self._phases.items()):
            family.add_metric([namespace, name, phase], 1)
        yield family
        family = GaugeMetricFamily(
            "rljob_job_condition",
            "1 for a condition of trouble that holds: those of learning health, RewardFailing and Stalled.",
            labels=["job_namespace", "job_name", "condition"],
        )
        for (namespace, name), conditions in list(self._problems.items()):
            for condition in conditions:
                family.add_metric([namespace, name, condition], 1)
        yield family
        family = GaugeMetricFamily(
            "rljob_job_resources_refused",
            "1 for a job of which the apiserver refuses an object: its condition ResourcesApplied is False.",
            labels=["job_namespace", "job_name"],
        )
        for namespace, name in list(self._refused):
            family.add_metric([namespace, name], 1)
        yield family
