"""What may change once a job has started. For the CRD alone: only the apiserver sees what was there before."""

from rljob_api.rules.rule import Validation

MUTABLE = (
    "rollout.replicas",
    "rollout.autoscaling",
    "retriever.replicas",
    "retriever.autoscaling",
    "lifecycle.suspend",
    "lifecycle.suspendTimeoutSeconds",
    "lifecycle.backoffLimit",
    "lifecycle.backoffReset",
    "lifecycle.failureRules",
    "lifecycle.activeDeadlineSeconds",
    "lifecycle.ttlSecondsAfterFinished",
    "lifecycle.health",
    "lifecycle.earlyStop",
    "lifecycle.stall",
)
"""Fields of the spec that may change once the first attempt has started."""
GROWING = ("storage.size", "retriever.storage.size")
"""Quantities that may then grow, and no more: the size of a claim."""

_STARTED = "has(oldSelf.status) && has(oldSelf.status.attempt) && oldSelf.status.attempt > 0"


def presence(section: str) -> Validation:
    """The rule that a section of which some fields may change stays, or stays away, once the job has started."""
    return Validation(
        "",
        _once_started(section, f"has(self.spec.{section}) == has(oldSelf.spec.{section})"),
        "cannot come or go once the job has started; create a job of another name, or delete this one first",
        f"spec.{section}",
    )


def immutability(path: str, *, scalar: bool) -> Validation:
    """The rule that keeps `spec.<path>` as it is once the job has started; of a scalar, it names both values."""
    new, old = f"self.spec.{path}", f"oldSelf.spec.{path}"
    same = f"has({new}) == has({old}) && (!has({new}) || {new} == {old})"
    values = f": it is {{{old}}}, not {{{new}}}" if scalar else ""
    return Validation(
        "",
        _once_started(path, same),
        f"cannot change once the job has started{values}; create a job of another name, or delete this one first",
        f"spec.{path}",
    )


def growth(path: str) -> Validation:
    """The rule that the quantity `spec.<path>`, which is always there with its section, never shrinks once the job has
    started."""
    new, old = f"self.spec.{path}", f"oldSelf.spec.{path}"
    return Validation(
        "",
        _once_started(path, f"quantity({new}).compareTo(quantity({old})) >= 0"),
        f"may grow, not shrink, once the job has started: it is {{{old}}}, not {{{new}}}",
        f"spec.{path}",
    )


def _once_started(path: str, held: str) -> str:
    """The condition that `held` is true of a job that has started, where the sections around `spec.<path>` are there
    before and after."""
    parts = path.split(".")
    parents = [f"has(self.spec.{'.'.join(parts[:end])})" for end in range(1, len(parts))]
    guard = " && ".join(parents + [parent.replace("self.", "oldSelf.", 1) for parent in parents])
    return f"!({_STARTED}) || ({f'!({guard}) || ({held})' if guard else held})"
