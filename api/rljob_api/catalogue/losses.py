"""Policy losses: the values of `spec.algorithm.policyLoss`."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Loss:
    """One policy loss. Its function is a `rljob.PolicyLoss`."""

    name: str
    function: str
    """`module:function`; called with `PolicyLossInputs` and, by keyword, with `settings`."""
    settings: tuple[str, ...] = ("eps_clip", "eps_clip_high")
    """What it is given of `spec.algorithm`: `eps_clip`, `eps_clip_high`, `dual_clip`."""


_LIBRARY = "rljob_trainer.algorithms.losses"
LOSSES: dict[str, Loss] = {
    entry.name: entry
    for entry in (
        Loss("ppo_clip", f"{_LIBRARY}:ppo_clip", ("eps_clip", "eps_clip_high", "dual_clip")),
        Loss("gspo", f"{_LIBRARY}:gspo"),
        Loss("cispo", f"{_LIBRARY}:cispo"),
    )
}
