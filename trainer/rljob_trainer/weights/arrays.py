"""Tensors as numpy arrays and back, for Ray's object store. numpy has no bfloat16: it travels as its bits, uint16.

No model has integer weights of 16 bits, so a uint16 array always stands for bfloat16.
"""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

Array = NDArray[Any]


def to_array(tensor: torch.Tensor) -> Array:
    """A contiguous CPU copy of `tensor`: later training steps must not change weights that were handed out."""
    tensor = tensor.detach().to("cpu", copy=True).contiguous()
    if tensor.dtype == torch.bfloat16:
        return tensor.view(torch.uint16).numpy()
    array: Array = tensor.numpy()
    return array


def to_tensor(array: Array) -> torch.Tensor:
    """The tensor that `to_array` made `array` from. It owns its memory: arrays of the object store are read-only."""
    tensor = torch.from_numpy(np.array(array, copy=True, order="C"))
    return tensor.view(torch.bfloat16) if tensor.dtype == torch.uint16 else tensor
