"""The Triton kernel of fingerprints against the plain functions."""

import pytest
import torch
from rljob_trainer.weights import fingerprint
from rljob_trainer.weights.fingerprint import block_sum, block_sums, tensor_sum, tensor_sums

from trainer.tests.training.interpreter import DEVICE, check_interpreted, needs_triton, starts_interpreter


@starts_interpreter
def test_the_kernel_as_interpreted() -> None:
    check_interpreted(__file__, passing=2)


@pytest.fixture
def by_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tensors on a CPU are summed by the kernel, too, of which few programs have to go round."""
    from rljob_trainer.weights import fingerprint_kernel

    monkeypatch.setattr(fingerprint_kernel, "PROGRAMS", 2)
    monkeypatch.setattr(fingerprint_kernel, "WORDS", 64)
    monkeypatch.setattr(torch.Tensor, "is_cuda", property(lambda self: True))


@needs_triton
def test_whole_tensors(by_kernel: None) -> None:
    draw = torch.Generator().manual_seed(2)
    sizes = [(3, 5), (1,), (0,), (64, 2), (7,), (31, 33), ()]
    types = (torch.float32, torch.bfloat16)
    tensors = [torch.randn(size, generator=draw).to(DEVICE, dtype) for size in sizes for dtype in types]
    tensors += [tensors[10][3:29], tensors[10].T]
    assert tensor_sums(tensors).tolist() == [int(tensor_sum(tensor)) for tensor in tensors]


@needs_triton
def test_parts_of_tensors(by_kernel: None) -> None:
    draw = torch.Generator().manual_seed(3)
    whole = torch.randn(40, 36, generator=draw).to(DEVICE, torch.bfloat16)
    bias = torch.randn(14, generator=draw).to(DEVICE, torch.bfloat16)
    blocks = [
        *((rows, whole.shape, [at, 0]) for at, rows in ((0, whole[:17]), (17, whole[17:]))),
        *((columns, whole.shape, [0, at]) for at, columns in ((0, whole[:, :10]), (10, whole[:, 10:]))),
        *((some, bias.shape, [at]) for at, some in ((0, bias[:6]), (6, bias[6:]))),
    ]
    found = block_sums(blocks).tolist()
    assert found == [int(block_sum(*block)) for block in blocks]
    for pair, of in ((found[:2], whole), (found[2:4], whole), (found[4:], bias)):
        assert (sum(pair) - int(fingerprint.tensor_sum(of))) % 2**64 == 0
