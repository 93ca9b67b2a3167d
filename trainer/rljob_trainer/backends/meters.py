"""Metrics of one step, added up over micro batches and ranks."""

import torch

from rljob_trainer.backends.process import all_reduce


class Meters:
    """Named sums and maxima. All ranks name the same ones in the same order."""

    def __init__(self, sums: tuple[str, ...], maxima: tuple[str, ...] = ()) -> None:
        self._sums = dict.fromkeys(sums, 0.0)
        self._maxima = dict.fromkeys(maxima, -torch.inf)

    def add(self, **values: float | torch.Tensor) -> None:
        """Add to sums."""
        for name, value in values.items():
            self._sums[name] += float(value)

    def peak(self, name: str, values: torch.Tensor) -> None:
        """Raise a maximum to the largest of `values`, if there are any."""
        if values.numel():
            self._maxima[name] = max(self._maxima[name], float(values.max()))

    def reduce(self) -> dict[str, float]:
        """Totals over all ranks (collective). A maximum of nothing is 0."""
        sums = all_reduce(torch.tensor(list(self._sums.values()), dtype=torch.float64))
        result = dict(zip(self._sums, sums.tolist(), strict=True))
        if self._maxima:
            maxima = all_reduce(torch.tensor(list(self._maxima.values()), dtype=torch.float64), "max")
            for name, value in zip(self._maxima, maxima.tolist(), strict=True):
                result[name] = 0.0 if value == -torch.inf else value
        return result
