"""A step with logits in chunks is the same; tensors that were away come back as they were."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from rljob_trainer.training.gpu_memory import HostStash
from rljob_trainer.weights import weights_digest

from trainer.tests.training.test_training_step import gradients
from trainer.tests.training.tiny import samples

Make = Callable[..., Any]


@pytest.mark.parametrize("entropy_coef", [0.0, 0.01])
def test_a_step_with_chunked_logits_is_the_same(make_rank: Make, entropy_coef: float) -> None:
    results = []
    for chunk in (None, 4):
        rank = make_rank({"algorithm": {"entropyCoef": entropy_coef}})
        rank.begin_rl()
        state = rank.backend.state
        state.policy.module.chunk = state.reference.chunk = chunk
        taken = gradients(rank)
        results.append((rank.rl_step(samples(7, 13), 0, 10), taken))
    for name, value in results[0][0].items():
        assert results[1][0][name] == pytest.approx(value, rel=1e-4, abs=1e-6), name
    for name, value in results[0][1].items():
        torch.testing.assert_close(results[1][1][name], value, rtol=1e-3, atol=1e-6)


def test_optimizer_states_go_away_and_come_back(make_rank: Make) -> None:
    digests = []
    for offload in (False, True):
        rank = make_rank({"optimizer": {"offload": offload, "lr": 1e-2}})
        inner = rank.backend
        inner.optimizer_stash = HostStash(lambda backend=inner: backend.state.moments(), from_host=True)
        rank.begin_rl()
        for step in range(3):
            rank.rl_step(samples(step, 6), step, 3)
            assert inner.optimizer_stash.away is offload
            sizes = {tensor.untyped_storage().nbytes() for tensor in inner.state.moments()}
            assert (sizes == {0}) is offload
        digests.append(weights_digest(rank.full_weights()))
    assert digests[0] == digests[1]
    inner.optimizer_stash.put()
    inner.optimizer_stash.take()
    inner.optimizer_stash.take()
    assert all(tensor.abs().sum() > 0 for tensor in list(inner.state.moments())[:1])


def test_a_rank_that_leaves_the_gpu_after_every_call_trains_and_saves_the_same(make_rank: Make, tmp_path: Path) -> None:
    found = []
    for leaves in (False, True):
        rank = make_rank({"optimizer": {"lr": 1e-2}})
        rank._stash = HostStash(rank.backend.held, from_host=True)

        def leave(rank: Any = rank, leaves: bool = leaves) -> None:
            if leaves:
                rank.put_away()
                assert {tensor.untyped_storage().nbytes() for tensor in rank.backend.held()} == {0}

        leave()
        rank.begin_rl()
        metrics = []
        for step in range(3):
            leave()
            logprobs = rank.compute_logprobs(samples(step, 6))
            leave()
            metrics.append(rank.rl_step(samples(step, 6), step, 3, logprobs))
        leave()
        folder = tmp_path / str(leaves)
        folder.mkdir()
        entries = rank.save(str(folder))
        leave()
        found.append((metrics, [(entry.path, entry.sha256) for entry in entries], weights_digest(rank.full_weights())))
    assert found[0] == found[1]
