"""Metrics of one step, added up over micro batches and ranks."""

import torch

from rljob_trainer.training.process_group import all_reduce


class StepMetrics:
    """Named sums and maxima. All ranks name the same ones in the same order."""

    def __init__(self, sums: tuple[str, ...], maxima: tuple[str, ...] = ()) -> None:
        self._sums: dict[str, float | torch.Tensor] = dict.fromkeys(sums, 0.0)
        self._maxima: dict[str, float | torch.Tensor] = dict.fromkeys(maxima, -torch.inf)

    def add(self, **values: float | torch.Tensor) -> None:
        """Add to sums. Tensors stay on their device: reading one would wait for the GPU."""
        for name, value in values.items():
            exact = value.detach().double() if isinstance(value, torch.Tensor) else value
            self._sums[name] = self._sums[name] + exact

    def peak(self, name: str, values: torch.Tensor) -> None:
        """Raise a maximum to the largest of `values`, if there are any."""
        if values.numel():
            largest = values.detach().double().max()
            held = self._maxima[name]
            self._maxima[name] = torch.maximum(largest, held) if isinstance(held, torch.Tensor) else largest

    def reduce(self) -> dict[str, float]:
        """Totals over all ranks (collective). A maximum of nothing is 0."""
        sums = all_reduce(_stack(self._sums))
        result = dict(zip(self._sums, sums.tolist(), strict=True))
        if self._maxima:
            maxima = all_reduce(_stack(self._maxima), "max")
            for name, value in zip(self._maxima, maxima.tolist(), strict=True):
                result[name] = 0.0 if value == -torch.inf else value
        return result


def _stack(values: dict[str, float | torch.Tensor]) -> torch.Tensor:
    """[number of values] float64 on the CPU; what lies on a GPU comes over at once."""
    tensors = [value for value in values.values() if isinstance(value, torch.Tensor)]
    moved = iter(torch.stack(tensors).tolist() if tensors else [])
    return torch.tensor(
        [next(moved) if isinstance(value, torch.Tensor) else value for value in values.values()], dtype=torch.float64
    )
