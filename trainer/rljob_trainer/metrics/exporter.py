"""Prometheus endpoints of the driver, the ranks and the engines.

Names follow the Prometheus conventions (base units, `_total` for counters). The job's name is the label `job_name`:
`job` would collide with the label that Prometheus itself puts on every target.
"""

import logging
import os
import socket
from collections.abc import Mapping
from dataclasses import dataclass

from prometheus_client import CollectorRegistry, Counter, Gauge, start_http_server
from prometheus_client.process_collector import ProcessCollector

logger = logging.getLogger(__name__)


def serve(registry: CollectorRegistry, port: int, *, strict: bool = False) -> int:
    """Serve `registry` at `port`; a busy port is replaced by a free one unless `strict`. Returns the port, 0 for none.

    Raises OSError when `strict` and the port is busy.
    """
    if port == 0:
        return 0
    try:
        start_http_server(port, registry=registry)
    except OSError:
        if strict:
            raise
        with socket.socket() as probe:
            probe.bind(("", 0))
            free = int(probe.getsockname()[1])
        start_http_server(free, registry=registry)
        logger.warning("metrics port %d is busy, serving at %d", port, free)
        return free
    return port


def serve_worker(registry: CollectorRegistry, port: int) -> int:
    """Serve a rank's or engine's `registry`: at `port` in a pod (a free one for the second in it), elsewhere at a free
    one. Returns the port, 0 for none."""
    if port == 0:
        return 0
    if "RLJOB_NAME" in os.environ:
        return serve(registry, port)
    server, _ = start_http_server(0, registry=registry)
    return int(server.server_port)


@dataclass(frozen=True)
class _Series:
    name: str
    help: str
    key: str


_RL_GAUGES = (
    _Series("rljob_reward_mean", "Mean reward of the last rollout.", "reward"),
    _Series("rljob_kl_mean", "Mean KL estimate against the reference model, in nats per token.", "kl"),
    _Series("rljob_entropy_mean", "Mean entropy of the policy, in nats per token.", "entropy"),
    _Series("rljob_clip_ratio", "Share of tokens whose ratio was clipped.", "clipfrac"),
    _Series("rljob_gradient_norm", "Global gradient norm before clipping.", "grad_norm"),
    _Series("rljob_learning_rate", "Learning rate of the last optimizer step.", "lr"),
    _Series("rljob_loss", "Loss of the last optimizer step.", "loss"),
    _Series("rljob_response_tokens_mean", "Mean response length in tokens, observations included.", "response_length"),
    _Series("rljob_turns_mean", "Mean number of generations per sample.", "turns"),
    _Series("rljob_searches_mean", "Mean number of searches per sample.", "searches"),
    _Series("rljob_groups_dropped", "Groups that the filter dropped in the last rollout.", "sampling/groups_dropped"),
    _Series(
        "rljob_groups_waiting",
        "Good groups that wait for the next rollout.",
        "sampling/groups_left_ready",
    ),
    _Series(
        "rljob_groups_unfinished", "Groups to be continued in the next rollout.", "sampling/groups_left_unfinished"
    ),
    _Series("rljob_stale_token_ratio", "Share of trained tokens made by an older policy.", "sampling/stale_tokens"),
    _Series("rljob_generated_tokens_per_second", "Tokens generated per second of generation.", "tokens_per_second"),
    _Series(
        "rljob_mismatch_logprob_mean", "Mean |log π_train − log π_rollout| over trained tokens.", "logprob_diff_mean"
    ),
)


class DriverMetrics:
    """What the driver tells Prometheus."""

    def __init__(self, job_name: str) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        labels = ["job_name"]
        self._job = job_name
        self._gauges = {
            series.key: Gauge(series.name, series.help, labels, registry=self.registry) for series in _RL_GAUGES
        }
        self._step = Gauge("rljob_step", "Optimizer steps trained, SFT included.", labels, registry=self.registry)
        self._total = Gauge("rljob_steps_planned", "Optimizer steps asked for.", labels, registry=self.registry)
        self._rollout = Gauge("rljob_rollout", "Rollouts trained.", labels, registry=self.registry)
        self._version = Gauge(
            "rljob_policy_version", "Version of the weights that the engines serve.", labels, registry=self.registry
        )
        self._phase = Counter(
            "rljob_phase_seconds", "Seconds by phase of the loop.", [*labels, "phase"], registry=self.registry
        )
        self._evaluation = Gauge(
            "rljob_evaluation_score", "Last score of an evaluation set.", [*labels, "set"], registry=self.registry
        )
        self._tokens = Counter("rljob_generated_tokens", "Tokens generated.", labels, registry=self.registry)
        self._commits = Counter("rljob_commits", "Commits written.", labels, registry=self.registry)
        self._restarts = Counter("rljob_engine_restarts", "Engines replaced.", labels, registry=self.registry)
        self._failed = Counter(
            "rljob_failed_samples", "Samples that failed or were cut off.", [*labels, "status"], registry=self.registry
        )
        for counter in (self._tokens, self._commits, self._restarts):
            counter.labels(job_name)

    def steps(self, step: int, total: int, rollout: int, policy_version: int) -> None:
        """Where the run stands."""
        self._step.labels(self._job).set(step)
        self._total.labels(self._job).set(total)
        self._rollout.labels(self._job).set(rollout)
        self._version.labels(self._job).set(policy_version)

    def values(self, values: Mapping[str, float]) -> None:
        """Set the gauges that `values` names; other keys are left out."""
        for key, gauge in self._gauges.items():
            if key in values:
                gauge.labels(self._job).set(values[key])

    def phases(self, seconds: Mapping[str, float]) -> None:
        """Add the seconds of each phase."""
        for phase, value in seconds.items():
            if phase != "total":
                self._phase.labels(self._job, phase).inc(value)

    def evaluation(self, name: str, score: float) -> None:
        """Last score of the evaluation set `name`."""
        self._evaluation.labels(self._job, name).set(score)

    def generated(self, tokens: int, statuses: Mapping[str, int]) -> None:
        """Count generated tokens, and samples by a status other than completed."""
        self._tokens.labels(self._job).inc(tokens)
        for status, count in statuses.items():
            if status != "completed":
                self._failed.labels(self._job, status).inc(count)

    def committed(self) -> None:
        """Count a commit."""
        self._commits.labels(self._job).inc()

    def engine_restarted(self) -> None:
        """Count a replaced engine."""
        self._restarts.labels(self._job).inc()


class ProcessMetrics:
    """What a rank or an engine tells Prometheus: its own gauges, made from a plain dict as they come."""

    def __init__(self, job_name: str, role: str, index: int) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        self._labels = {"job_name": job_name, "index": str(index)}
        self._role = role
        self._gauges: dict[str, Gauge] = {}

    def set(self, values: Mapping[str, float]) -> None:
        """Set `rljob_<role>_<key>` for every key of `values`."""
        for key, value in values.items():
            if key not in self._gauges:
                name = f"rljob_{self._role}_{key}".replace("/", "_").replace("-", "_")
                self._gauges[key] = Gauge(
                    name, f"{key} of this {self._role}.", list(self._labels), registry=self.registry
                )
            self._gauges[key].labels(**self._labels).set(value)
