"""Advantage estimators: the values of `spec.algorithm.advantageEstimator`."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Estimator:
    """One estimator. Its function is a `rljob.AdvantageEstimator`."""

    name: str
    function: str
    """`module:function`; called with `AdvantageInputs` and, by keyword, with `settings`."""
    settings: tuple[str, ...] = ()
    """What it is given of `spec.algorithm`: `normalize_by_std`, `gamma`, `lam` (`gaeLambda`)."""
    compares_group: bool = False
    """A sample's advantage is what sets it apart from the others of its prompt: one sample per prompt is refused."""
    per_token: bool = False
    """It gives an advantage per trained token, [N]; otherwise one per sample, [S]."""
    needs_values: bool = False
    """It is given a critic's values, and gives the returns that the critic learns."""


_LIBRARY = "rljob_trainer.algorithms.advantages"
ESTIMATORS: dict[str, Estimator] = {
    entry.name: entry
    for entry in (
        Estimator("grpo", f"{_LIBRARY}:grpo", ("normalize_by_std",), compares_group=True),
        Estimator("rloo", f"{_LIBRARY}:rloo", compares_group=True),
        Estimator("reinforce_plus_plus", f"{_LIBRARY}:reinforce_plus_plus", ("gamma",), per_token=True),
        Estimator("reinforce_plus_plus_baseline", f"{_LIBRARY}:reinforce_plus_plus_baseline", per_token=True),
        Estimator("gae", f"{_LIBRARY}:ppo_gae", ("gamma", "lam"), per_token=True, needs_values=True),
    )
}
