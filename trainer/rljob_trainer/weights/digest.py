"""The digest by which trainer and engine agree on the weights that are served."""

import hashlib
from collections.abc import Mapping

import numpy as np
import torch

from rljob_trainer.weights.arrays import Array


def weights_digest(weights: Mapping[str, Array | torch.Tensor]) -> str:
    """SHA-256 (hex) over names in sorted order, each with its dtype, shape and little-endian bytes.

    Arrays and tensors of the same values give the same digest, wherever they lie; a uint16 array counts as bfloat16
    (see `weights.arrays`).
    """
    digest = hashlib.sha256()
    for name in sorted(weights):
        value = weights[name]
        if isinstance(value, torch.Tensor):
            value = value.detach().to("cpu").contiguous()
            dtype = str(value.dtype).removeprefix("torch.")
            data = value.reshape(-1).view(torch.uint8).numpy()
        else:
            dtype = "bfloat16" if value.dtype == np.uint16 else str(value.dtype)
            data = np.ascontiguousarray(value)
        digest.update(f"{name}\0{dtype}\0{','.join(map(str, value.shape))}\0".encode())
        digest.update(data.reshape(-1).view(np.uint8))
    return digest.hexdigest()
