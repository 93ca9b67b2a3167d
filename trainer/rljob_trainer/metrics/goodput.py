"""Goodput: which share of the GPU time that a job holds is spent generating and training.

A phase of the loop occupies one group of GPUs and leaves the other idle, unless both groups are the same GPUs
(colocated). Where a job has no GPUs, its ranks and engines count in their place.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from rljob_api.rules.arithmetic import engine_count, rollout_gpus, shares_gpus, trainer_gpus, trains, world_size
from rljob_api.v1alpha1.job import RLJobSpec

GpuSeconds = dict[tuple[str, str], float]
"""GPU seconds by group (`trainer`, `rollout`, or `shared`) and activity."""
USEFUL = ("generate", "train")
_OF_TRAINER = ("train", "sync", "commit")
_OF_ROLLOUT = ("generate", "sync", "evaluate")


@dataclass(frozen=True)
class Devices:
    """What the groups of a job hold: GPUs, or processes where there are none."""

    trainer: int
    rollout: int
    shared: bool = False
    """Both groups are the same devices."""


def devices_of(spec: RLJobSpec) -> Devices:
    """The devices of a job."""
    trainer, rollout = trainer_gpus(spec), rollout_gpus(spec)
    if trainer == rollout == 0:
        trainer, rollout = world_size(spec) if trains(spec) else 0, engine_count(spec)
    return Devices(trainer, rollout, shares_gpus(spec))


def gpu_seconds(phases: Mapping[str, float], devices: Devices, *, beside: float | None = None) -> GpuSeconds:
    """Where the GPU time of `phases` went (seconds by phase, `total` among them).

    `beside`: seconds that the engines generated while the loop did something else, as asynchronous loops do; the
    phase `generate` is then the trainer's wait.
    """
    total = phases.get("total", 0.0)
    if devices.shared:
        return _group("shared", devices.trainer, total, {p: phases.get(p, 0.0) for p in {*_OF_TRAINER, *_OF_ROLLOUT}})
    of_rollout = {phase: phases.get(phase, 0.0) for phase in _OF_ROLLOUT}
    if beside is not None:
        of_rollout["generate"] = min(beside, max(0.0, total - of_rollout["sync"] - of_rollout["evaluate"]))
    of_trainer = {phase: phases.get(phase, 0.0) for phase in _OF_TRAINER}
    return _group("trainer", devices.trainer, total, of_trainer) | _group("rollout", devices.rollout, total, of_rollout)


def goodput(seconds: Mapping[tuple[str, str], float]) -> float | None:
    """Share of the GPU time that was spent generating and training; None without any."""
    total = sum(seconds.values())
    return sum(value for (_, activity), value in seconds.items() if activity in USEFUL) / total if total else None


def _group(name: str, devices: int, total: float, busy: Mapping[str, float]) -> GpuSeconds:
    if not devices:
        return {}
    shares = {(name, activity): value * devices for activity, value in busy.items()}
    return shares | {(name, "idle"): max(0.0, total - sum(busy.values())) * devices}
