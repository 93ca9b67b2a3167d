"""Recomputation of activations with fsdp: where the job asks for it, and nowhere else."""

from collections.abc import Callable
from typing import Any

import pytest

from trainer.tests.training.tiny import demonstrations, samples

FULL = {"granularity": "full"}


def runs_of_a_block(rank: Any, step: Callable[[], Any]) -> int:
    """How often a step runs its first block's attention: twice a pass with recomputation."""
    count = 0

    def seen(*_: Any) -> None:
        nonlocal count
        count += 1

    handle = rank.backend.state.policy.module.hf.model.layers[0].self_attn.register_forward_hook(seen)
    step()
    handle.remove()
    return count


@pytest.mark.parametrize(
    ("recompute", "checkpointing", "sft", "rl"),
    [({}, False, 1, 1), (FULL, False, 2, 2), ({}, True, 2, 1), (FULL, True, 2, 2)],
)
def test_layers_are_recomputed_in_the_stages_that_ask_for_it(
    make_rank: Callable[..., Any], recompute: dict[str, Any], checkpointing: bool, sft: int, rl: int
) -> None:
    stage = {"dataset": {"path": "x.jsonl"}, "gradientCheckpointing": checkpointing}
    rank = make_rank({"sft": stage}, microBatchSize=100, recompute=recompute)
    assert runs_of_a_block(rank, lambda: rank.sft_step(demonstrations(3, 5), 0, 10)) == sft
    rank.begin_rl()
    assert runs_of_a_block(rank, lambda: rank.rl_step(samples(7, 5), 0, 10)) == rl
