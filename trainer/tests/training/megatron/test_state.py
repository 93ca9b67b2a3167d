"""What Megatron ranks write into a commit is what they take up again, and nothing else is."""

from pathlib import Path
from typing import Any

import pytest
import torch
from rljob_api.errors import UserError
from rljob_trainer.training.megatron.layout import Layout
from rljob_trainer.training.megatron.state import (
    MasterWeight,
    MegatronState,
    about,
    check_about,
    load_state,
    state_tensors,
)
from rljob_trainer.training.rank_state import read_about, state_writer

CPU = torch.device("cpu")
LAYOUT = Layout(4, pipeline=2)
"""Two stages of two data-parallel ranks each."""


def state_of(rank: int, *, steps: int, reference: float | None) -> MegatronState:
    """A rank's state; all its numbers follow from the arguments."""
    moments: dict[str, Any] = {}
    if steps:
        moments = {key: torch.full((3,), rank + steps / 10) for key in ("exp_avg", "exp_avg_sq")}
        moments["step"] = torch.tensor(float(steps))
    weights = [MasterWeight("0.0.0", torch.full((3,), float(rank + 10 * steps)), moments, moments)]
    stage = LAYOUT.coordinates(rank).pipeline
    frozen = None if reference is None else {"w": torch.full((2,), reference + stage)}
    return MegatronState("sft" if reference is None else "rl", weights, frozen)


def write(directory: Path, steps: int, reference: float | None) -> list[list[str]]:
    """A commit of all ranks; the names of the files that each wrote."""
    names = []
    for rank in range(LAYOUT.world):
        torch.manual_seed(rank)
        state = state_of(rank, steps=steps, reference=reference)
        tensors = state_tensors(state, LAYOUT, rank)
        entries = state_writer(directory, rank, about(LAYOUT, state.stage), tensors, CPU, copy=rank % 2 == 0)()
        names.append([entry.path for entry in entries])
    return names


@pytest.mark.parametrize(("steps", "reference"), [(0, None), (4, None), (4, 7.0)])
def test_ranks_take_up_what_they_wrote(tmp_path: Path, steps: int, reference: float | None) -> None:
    files = write(tmp_path, steps, reference)
    assert [len(some) for some in files] == [2, 1, 1, 1]
    check_about(read_about(tmp_path), LAYOUT, str(tmp_path))
    for rank in range(LAYOUT.world):
        wanted = state_of(rank, steps=steps, reference=reference)
        state = state_of(rank, steps=0, reference=None if reference is None else -1.0)
        load_state(state, str(tmp_path), LAYOUT, rank, CPU)
        drawn = torch.rand(3)
        torch.manual_seed(rank)
        assert torch.equal(drawn, torch.rand(3))
        (mine,), (theirs,) = state.weights, wanted.weights
        assert torch.equal(mine.weight, theirs.weight)
        assert mine.state.keys() == theirs.state.keys()
        assert all(torch.equal(mine.state[key], theirs.state[key]) for key in mine.state)
        if wanted.reference is not None:
            assert state.reference is not None
            assert torch.equal(state.reference["w"], wanted.reference["w"])


def test_data_parallel_ranks_write_the_reference_once() -> None:
    writers = [
        rank
        for rank in range(LAYOUT.world)
        if "reference.w" in state_tensors(state_of(rank, steps=1, reference=1.0), LAYOUT, rank)
    ]
    assert writers == [0, 2]
    experts = Layout(4, pipeline=2, expert=2)
    state = state_of(0, steps=1, reference=1.0)
    assert all("reference.w" in state_tensors(state, experts, rank) for rank in range(4))


def test_another_layout_or_backend_is_refused_with_what_is_different() -> None:
    written = about(LAYOUT, "rl")
    with pytest.raises(UserError, match=r"parallelism: the commit here was written with pipeline 2, this run has 1"):
        check_about(written, Layout(4), "here")
    with pytest.raises(UserError, match=r"not written by the megatron backend .* \(format 1, not 'megatron-1'\)"):
        check_about(written | {"format": 1}, LAYOUT, "here")
