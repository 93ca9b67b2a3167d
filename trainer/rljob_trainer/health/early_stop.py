"""Early stop: whether a number is as good as was hoped for."""

from collections.abc import Mapping

from rljob_api.v1alpha1.health import EarlyStop

EVALUATION = "evaluation/"


def measured(
    spec: EarlyStop, values: Mapping[str, float], evaluations: Mapping[str, Mapping[str, float]]
) -> float | None:
    """The number that `spec` looks at, None when it was not measured just now.

    `values`: those of a rollout; `evaluations`: those made just now, by set.
    """
    if not spec.metric.startswith(EVALUATION):
        return values.get(spec.metric)
    dataset, _, number = spec.metric.removeprefix(EVALUATION).partition("/")
    return evaluations.get(dataset, {}).get(number or "score")


def reached(spec: EarlyStop, value: float) -> bool:
    """Whether `value` is good enough."""
    return (spec.at_least is None or value >= spec.at_least) and (spec.at_most is None or value <= spec.at_most)


def bound(spec: EarlyStop) -> str:
    """The target in words."""
    parts = [("at least", spec.at_least), ("at most", spec.at_most)]
    return " and ".join(f"{word} {value:g}" for word, value in parts if value is not None)
