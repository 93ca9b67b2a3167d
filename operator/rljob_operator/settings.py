"""What the operator was installed with: images, scope, limits. From flags, else from the environment."""

import argparse
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields

LABEL = re.compile(r"[A-Za-z0-9]([-A-Za-z0-9_./]*[A-Za-z0-9])?=[-A-Za-z0-9_.]*")


@dataclass(frozen=True, slots=True)
class Settings:
    """Settings of the operator. Every field is a flag (`--trainer-image`) and a variable (`RLJOB_TRAINER_IMAGE`)."""

    trainer_image: str = "rljob/trainer:dev"
    """Image of head, trainer and rollout pods, for jobs that name none."""
    retriever_image: str = "rljob/retriever:dev"
    """Image of retriever pods, for jobs that name none."""
    image_pull_policy: str = "IfNotPresent"
    """Pull policy, for jobs that name none."""
    image_pull_secrets: tuple[str, ...] = ()
    """Pull Secrets in the job's namespace, besides those that the job names."""
    watch_namespaces: tuple[str, ...] = ()
    """Namespaces served; empty: all."""
    ray_version: str = "2.60.0"
    """Ray in the trainer image; KubeRay chooses its probes by it."""
    ray_token_auth: bool = True
    """Ray's dashboard, GCS and raylets answer only who shows the cluster's token (Ray 2.52 or later, KubeRay 1.5.1)."""
    network_policies: bool = True
    """Every job gets NetworkPolicies that let in only what belongs. No effect where the network plugin ignores them."""
    kuberay_pod_labels: tuple[str, ...] = ("app.kubernetes.io/component=kuberay-operator",)
    """Labels of KubeRay's pods: who may reach Ray's dashboard, besides the job's own pods."""
    kuberay_namespaces: tuple[str, ...] = ()
    """Namespaces of KubeRay's pods; empty: any, so that the labels alone decide."""
    metrics_namespaces: tuple[str, ...] = ("monitoring",)
    """Namespaces whose pods may scrape metrics."""
    kueue: bool = False
    """Jobs may name a queue of Kueue's (`lifecycle.queue`); the operator then reads Workloads."""
    run_as_user: int = 65532
    """User and group of the job's containers, as the images have it."""
    workers: int = 16
    """Jobs reconciled at once."""
    resync_seconds: float = 300.0
    """Every job is looked at again after this time (±20 %), whatever the watches say."""
    settle_seconds: float = 5.0
    """How late a status may be that only counts ready pods differently; all else is written at once."""
    kuberay_recheck_seconds: float = 30.0
    """How often a job that waits for KubeRay looks for it."""
    start_timeout_seconds: float = 1800.0
    """An attempt whose driver has not reported within this time fails, unless its pods cannot be scheduled yet."""
    retry_backoff_seconds: float = 5.0
    """Wait before the first retry; doubled for each further one."""
    retry_backoff_max_seconds: float = 300.0
    """Longest wait before a retry."""
    driver_silent_seconds: float = 90.0
    """A driver that has promised reports and gives none for so long is named in the condition Stalled."""
    driver_lost_seconds: float = 600.0
    """After so long without one its attempt has failed."""
    report_grace_seconds: float = 30.0
    """Time for the driver's last report to arrive (or its process to end) after the RayJob (or the report) is final."""
    cause_grace_seconds: float = 5.0
    """How long the pods may take to tell why a worker was lost that the driver reports as lost."""
    drain_timeout_seconds: float = 900.0
    """How long a scale-down waits for the driver to drain the pods that go."""
    cleanup_timeout_seconds: float = 300.0
    """A deleted RLJob waits at most so long for its pods to be gone."""
    request_timeout_seconds: float = 15.0
    """Time limit of one call of the apiserver."""
    port: int = 8080
    """Port of /healthz, /readyz and /metrics."""
    log_level: str = "INFO"
    """DEBUG, INFO, WARNING or ERROR."""
    log_format: str = "json"
    """json or plain."""

    @classmethod
    def load(cls, arguments: Sequence[str] | None = None, environ: Mapping[str, str] = os.environ) -> "Settings":
        """Settings from flags over environment over defaults. Exits with usage when a value cannot be read."""
        parser = argparse.ArgumentParser(prog="rljob_operator", description="The operator of RLJobs.")
        for field in fields(cls):
            variable = f"RLJOB_{field.name.upper()}"
            parser.add_argument(
                f"--{field.name.replace('_', '-')}",
                type=_reader(field.default),
                default=environ.get(variable, field.default),
                metavar=type(field.default).__name__.upper(),
                help=f"environment: {variable}",
            )
        result = cls(**vars(parser.parse_args(arguments)))
        if wrong := next((label for label in result.kuberay_pod_labels if not LABEL.fullmatch(label)), None):
            parser.error(f"--kuberay-pod-labels: {wrong!r} is not key=value")
        if result.network_policies and not (result.kuberay_pod_labels or result.kuberay_namespaces):
            parser.error("--kuberay-pod-labels and --kuberay-namespaces are both empty: every pod could reach Ray")
        return result


def _reader(default: object) -> Callable[[str], object]:
    if isinstance(default, bool):
        return _boolean
    return _names if isinstance(default, tuple) else type(default)


def _boolean(text: str) -> bool:
    """`true` or `false`."""
    if text.lower() not in ("true", "false"):
        raise argparse.ArgumentTypeError(f"{text!r} is neither true nor false")
    return text.lower() == "true"


class _names(tuple[str, ...]):  # noqa: N801 - argparse shows the name of a type in its errors
    """A comma-separated list."""

    def __new__(cls, text: str) -> "_names":
        return super().__new__(cls, [part.strip() for part in text.split(",") if part.strip()])
