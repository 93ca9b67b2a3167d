"""Two ranks over gloo against one: a vocabulary cut in half, and sequences cut zig-zag, gradients included."""

import multiprocessing
import os
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from rljob_trainer.training.megatron.attention import packed_attention
from rljob_trainer.training.megatron.collectives import sum_over
from rljob_trainer.training.megatron.zigzag import attend, local_tokens
from rljob_trainer.training.vocab import vocab_logprobs
from torch import Tensor

from trainer.tests.training.test_vocab import plain, problem

ROWS = 7
"""Of the output matrix per rank: 14 in all, the last of them padding."""
LENGTHS = [8, 4, 12]


def attention_problem() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Queries, keys, values, upstream gradient."""
    draw = torch.Generator().manual_seed(8)
    query, up = (torch.randn(sum(LENGTHS), 4, 8, generator=draw) for _ in range(2))
    key, value = (torch.randn(sum(LENGTHS), 2, 8, generator=draw) for _ in range(2))
    return query, key, value, up


def vocab(rank: int, group: Any) -> list[Any]:
    """Half the vocabulary."""
    hidden, weight, targets, up, up_entropy = problem()
    mine = weight[rank * ROWS : (rank + 1) * ROWS].clone().requires_grad_()
    hidden.requires_grad_()
    chosen, entropy = vocab_logprobs(
        hidden, mine, targets, temperature=0.7, first=rank * ROWS, group=group, chunk=4
    )  # fmt: skip
    ((chosen * up).sum() + (entropy * up_entropy).sum()).backward()  # type: ignore[no-untyped-call]
    return [chosen.detach(), entropy.detach(), hidden.grad, mine.grad]


def context(rank: int, group: Any) -> list[Any]:
    """Half of each sequence; the loss is taken of the whole output on both ranks."""
    held = local_tokens(LENGTHS, rank, 2)
    query, key, value, up = attention_problem()
    mine = [tensor[held].clone().requires_grad_() for tensor in (query, key, value)]
    out = packed_attention(mine[0], mine[1], mine[2], attend(LENGTHS, rank, 2), group)
    whole = sum_over(torch.zeros_like(query).index_copy(0, held, out), group)
    (whole * up).sum().backward()  # type: ignore[no-untyped-call]
    return [held, whole.detach(), *(tensor.grad for tensor in mine)]


def _rank(rank: int, folder: str) -> None:
    store = dist.FileStore(f"{folder}/store", 2)  # type: ignore[attr-defined]
    dist.init_process_group("gloo", store=store, rank=rank, world_size=2)
    group = dist.group.WORLD
    torch.save({"vocab": vocab(rank, group), "context": context(rank, group)}, f"{folder}/{rank}.pt")
    dist.destroy_process_group()
    # Not by way of the interpreter's end: a thread of gloo's that lets go of a tensor meanwhile aborts the process
    # (pytorch pull request 179291).
    os._exit(0)


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, list[Tensor]]]:
    """What each of two processes found."""
    folder = tmp_path_factory.mktemp("ranks")
    spawn = multiprocessing.get_context("spawn")
    ranks = [spawn.Process(target=_rank, args=(rank, str(folder))) for rank in range(2)]
    for process in ranks:
        process.start()
    for process in ranks:
        process.join(200)
        assert process.exitcode == 0
    return [torch.load(Path(folder) / f"{rank}.pt") for rank in range(2)]


@pytest.mark.slow
def test_ranks_with_half_the_vocabulary_each_agree_with_one(found: list[dict[str, list[Tensor]]]) -> None:
    chosen, entropy, grad_hidden, grad_weight = plain(0.7)
    parts = [part["vocab"] for part in found]
    for part in parts:
        torch.testing.assert_close(part[0], chosen, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(part[1], entropy, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(parts[0][2] + parts[1][2], grad_hidden, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(torch.cat([parts[0][3], parts[1][3]]), grad_weight, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_ranks_with_half_of_each_sequence_attend_as_one(found: list[dict[str, list[Tensor]]]) -> None:
    query, key, value, up = attention_problem()
    alone = [tensor.requires_grad_() for tensor in (query, key, value)]
    out = packed_attention(query, key, value, attend(LENGTHS, 0, 1))
    (out * up).sum().backward()  # type: ignore[no-untyped-call]
    for part in found:
        held, whole, *grads = part["context"]
        torch.testing.assert_close(whole, out.detach(), rtol=1e-4, atol=1e-5)
        for tensor, grad in zip(alone, grads, strict=True):
            assert tensor.grad is not None
            torch.testing.assert_close(grad, tensor.grad[held], rtol=1e-4, atol=1e-5)
