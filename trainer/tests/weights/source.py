"""A rank's weights without a rank."""

from collections.abc import Iterator, Sequence

import torch
from rljob_trainer.weights.buckets import TensorInfo


class Source:
    """A rank that has these tensors."""

    def __init__(self, tensors: dict[str, torch.Tensor]) -> None:
        self.tensors = tensors

    def weights_layout(self) -> list[TensorInfo]:
        return [
            TensorInfo(name, tuple(tensor.shape), str(tensor.dtype).removeprefix("torch."))
            for name, tensor in self.tensors.items()
        ]

    def gather_weights(self, names: Sequence[str]) -> Iterator[tuple[str, torch.Tensor]]:
        return ((name, self.tensors[name]) for name in names)
