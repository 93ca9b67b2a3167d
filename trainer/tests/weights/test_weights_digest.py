"""The digest that trainer and engine compare."""

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st
from rljob_trainer.weights import to_array, to_tensor, weights_digest


def weights() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {
        "b.weight": torch.randn(3, 4, generator=generator),
        "a.bias": torch.randn(5, generator=generator).bfloat16(),
        "scale": torch.tensor(2.0),
        "empty": torch.zeros(0, 3),
    }


def test_arrays_and_tensors_agree_in_any_order_and_layout() -> None:
    tensors = weights()
    digest = weights_digest(tensors)
    assert weights_digest({name: to_array(tensor) for name, tensor in tensors.items()}) == digest
    assert weights_digest(dict(reversed(tensors.items()))) == digest
    transposed = tensors["b.weight"].t().contiguous().t()
    assert not transposed.is_contiguous()
    assert weights_digest(tensors | {"b.weight": transposed}) == digest
    assert weights_digest({name: to_tensor(to_array(tensor)) for name, tensor in tensors.items()}) == digest
    read_only = to_array(tensors["b.weight"])
    read_only.setflags(write=False)
    assert torch.equal(to_tensor(read_only), tensors["b.weight"])


@given(st.sampled_from(["b.weight", "a.bias", "scale"]), st.integers(0, 200))
def test_any_changed_bit_changes_it(name: str, bit: int) -> None:
    arrays = {key: to_array(tensor) for key, tensor in weights().items()}
    digest = weights_digest(arrays)
    raw = arrays[name].reshape(-1).view(np.uint8)
    raw[(bit // 8) % raw.size] ^= np.uint8(1 << (bit % 8))
    assert weights_digest(arrays) != digest


def test_name_shape_and_dtype_count() -> None:
    tensors = weights()
    digests = {
        weights_digest(changed)
        for changed in (
            tensors,
            {("c.weight" if name == "b.weight" else name): tensor for name, tensor in tensors.items()},
            tensors | {"b.weight": tensors["b.weight"].reshape(4, 3)},
            tensors | {"b.weight": tensors["b.weight"].view(torch.int32)},
            {name: tensor for name, tensor in tensors.items() if name != "empty"},
        )
    }
    assert len(digests) == 5
