"""Packed rows: documents one after another train exactly as they would alone."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from rljob_api.errors import UserError
from rljob_trainer.training.microbatch import Row, collate, plan

from trainer.tests.training.test_training_step import gradients
from trainer.tests.training.tiny import Demonstration, demonstrations, samples

Make = Callable[..., Any]
PACKING = {"sft": {"dataset": {"path": "x.jsonl"}, "packing": True}}


@dataclass
class PackedRow:
    """Several demonstrations in one row."""

    input_ids: list[int]
    loss_mask: list[int]
    lengths: list[int]


def packed(rows: Sequence[Demonstration]) -> PackedRow:
    return PackedRow(
        [token for row in rows for token in row.input_ids],
        [trained for row in rows for trained in row.loss_mask],
        [len(row.input_ids) for row in rows],
    )


@pytest.mark.parametrize("recompute", [False, True])
def test_packed_rows_give_the_loss_and_gradients_of_their_documents(make_rank: Make, recompute: bool) -> None:
    rows = [*demonstrations(3, 11), Demonstration([7], [1])]
    rank = make_rank()
    expected_gradients = gradients(rank)
    expected = rank.sft_step(rows, 0, 10)
    bins = [packed(rows[:4]), packed(rows[4:5]), packed(rows[5:])]
    sft = PACKING["sft"] | {"gradientCheckpointing": recompute}
    for size in (1, 2, 3):
        rank = make_rank({"sft": sft}, microBatchSize=size)
        got_gradients = gradients(rank)
        got = rank.sft_step(bins, 0, 10)
        assert got["loss"] == pytest.approx(expected["loss"], rel=1e-6)
        assert got["tokens"] == expected["tokens"]
        assert got["rows"] == 3
        for name, value in expected_gradients.items():
            torch.testing.assert_close(got_gradients[name], value, rtol=1e-4, atol=1e-6)


def test_a_packed_document_does_not_see_the_one_before(make_rank: Make) -> None:
    rows = demonstrations(5, 4)
    rank = make_rank(PACKING)
    with torch.no_grad():
        losses = []
        for first in (rows[0].input_ids, [(token + 1) % 40 for token in rows[0].input_ids]):
            row = packed([Demonstration(first, [0] * len(first)), *rows[1:]])
            batch = collate([Row(row.input_ids, row.loss_mask, row.lengths)], [0], packed=True)
            losses.append(rank.backend._forward(rank.backend.state.policy.module, batch, 1.0)[0])
    assert torch.equal(losses[0], losses[1])


@pytest.mark.parametrize("changes", [{}, {"useDynamicBatchSize": True, "maxTokensPerGpu": 30}, {"microBatchSize": 3}])
def test_reinforcement_learning_without_padding_is_the_same(make_rank: Make, changes: dict[str, Any]) -> None:
    results = []
    for layout in ("padded", "packed"):
        rank = make_rank(PACKING if layout == "packed" else {}, **changes)
        rank.backend.packed = layout == "packed"
        rank.begin_rl()
        taken = gradients(rank)
        results.append((rank.rl_step(samples(7, 13), 0, 10), taken))
    for name, value in results[0][0].items():
        assert results[1][0][name] == pytest.approx(value, rel=2e-4, abs=2e-6), name
    for name, value in results[0][1].items():
        torch.testing.assert_close(results[1][1][name], value, rtol=1e-3, atol=2e-6)


def test_collating_packed_rows_resets_positions_and_skips_boundaries() -> None:
    rows = [Row([5, 6, 7, 8, 9], [1, 1, 1, 0, 1], [3, 2]), Row([3], [1]), Row([1, 2], [1, 1])]
    batch = collate(rows, [0, 1, 2], packed=True)
    assert batch.input_ids.tolist() == [[5, 6, 8, 1]]
    assert batch.packing is not None
    assert batch.packing.position_ids.tolist() == [[0, 1, 0, 0]]
    assert batch.packing.bounds.tolist() == [0, 2, 3, 4]
    assert batch.packing.longest == 2
    assert batch.positions.tolist() == [0, 1, 2, 3]
    assert batch.targets.tolist() == [6, 7, 9, 2]
    assert batch.sample.tolist() == [0, 0, 0, 2]
    assert batch.sample_tokens.tolist() == [3, 0, 1]
    empty = collate(rows, [], packed=True)
    assert empty.input_ids.tolist() == [[0]]
    assert empty.sample_tokens.tolist() == [0]


def test_attention_that_would_look_across_documents_is_refused(make_rank: Make) -> None:
    with pytest.raises(UserError, match="eager would attend across"):
        make_rank(PACKING | {"model": {"attentionImplementation": "eager"}})


def test_rows_of_several_documents_are_never_padded_and_lengths_must_fit() -> None:
    with pytest.raises(ValueError, match="cannot be padded"):
        collate([Row([1, 2, 3], [1, 1, 1], [1, 2])], [0])
    with pytest.raises(ValueError, match=r"3 ids .* \[1, 1\]"):
        collate([Row([1, 2, 3], [1, 1, 1], [1, 1])], [0], packed=True)


documents = st.lists(st.lists(st.tuples(st.integers(0, 39), st.integers(0, 1)), max_size=6), min_size=1, max_size=4)


@given(st.lists(documents, min_size=1, max_size=5))
@settings(max_examples=60)
def test_packing_keeps_every_trained_token_with_its_context(rows: list[list[list[tuple[int, int]]]]) -> None:
    built = [
        Row(
            [token for document in row for token, _ in document],
            [mask for document in row for _, mask in document],
            [len(document) for document in row],
        )
        for row in rows
    ]
    batch = collate(built, list(range(len(built))), packed=True)
    assert batch.packing is not None
    ids, places = batch.input_ids[0].tolist(), batch.packing.position_ids[0].tolist()
    got = []
    for position, target in zip(batch.positions.tolist(), batch.targets.tolist(), strict=True):
        context = ids[position - places[position] : position + 1]
        got.append((context, target))
    expected = [
        ([token for token, _ in document[:at]], document[at][0])
        for row in rows
        for document in row
        for at in range(1, len(document))
        if document[at][1]
    ]
    assert got == expected


@given(st.lists(st.integers(1, 100), max_size=40), st.integers(1, 300))
def test_packed_passes_hold_every_row_and_keep_their_limit(lengths: list[int], tokens: int) -> None:
    batches = plan(lengths, 1, tokens, packed=True)
    assert sorted(row for batch in batches for row in batch) == list(range(len(lengths)))
    assert all(len(batch) == 1 or sum(lengths[row] for row in batch) <= tokens for batch in batches)
