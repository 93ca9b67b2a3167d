"""What AdamW keeps for a weight, whichever AdamW: Megatron takes TransformerEngine's where it is installed."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Slot:
    """A float32 weight, or this rank's share of one, and what AdamW keeps for it."""

    name: str
    """Stable: the same in every run of the same layout."""
    weight: Tensor
    state: dict[str, Any]
    counter: dict[str, Any]
    """Where `step` is counted: PyTorch's AdamW does so for each weight, TransformerEngine's for each group."""

    @property
    def steps(self) -> Tensor | None:
        """[1] the steps so far; None before the first."""
        step = self.counter.get("step")
        return None if step is None else torch.as_tensor(step).reshape(1)

    def restore(self, steps: Tensor, moments: dict[str, Tensor]) -> None:
        """Take up what a commit holds. moments: `exp_avg` and `exp_avg_sq`."""
        count = steps.reshape(())
        self.counter["step"] = count.float() if self.counter is self.state else int(count)
        self.state.update({key: value.to(self.weight.device) for key, value in moments.items()})
