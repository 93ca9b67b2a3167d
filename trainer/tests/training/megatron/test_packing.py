"""Packs, and how context-parallel ranks share them: attention and trained tokens are those of the single rows."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from rljob_trainer.training.megatron.attention import packed_attention
from rljob_trainer.training.megatron.packing import build_pack
from rljob_trainer.training.megatron.zigzag import attend, local_tokens
from rljob_trainer.training.microbatch import Row

lengths_of_rows = st.lists(st.integers(1, 30), min_size=1, max_size=12)


def rows(lengths: list[int], seed: int) -> list[Row]:
    """Rows of random ids, about half of them trained."""
    draw = torch.Generator().manual_seed(seed)
    return [
        Row(
            torch.randint(1, 90, (length,), generator=draw).tolist(),
            torch.randint(0, 2, (length,), generator=draw).tolist(),
        )
        for length in lengths
    ]


@given(lengths=lengths_of_rows, ranks=st.sampled_from([1, 2, 3]), sequence=st.sampled_from([1, 2]))
@settings(max_examples=40, deadline=None)
def test_a_pack_trains_the_rows_tokens_each_on_one_rank(lengths: list[int], ranks: int, sequence: int) -> None:
    data = rows(lengths, 1)
    numbers = list(range(len(data)))
    multiple = 2 * ranks if ranks > 1 else 1
    packs = [
        build_pack(
            data, numbers, row_multiple=multiple, pack_multiple=multiple * sequence,
            context_rank=rank, context_ranks=ranks,
        )
        for rank in range(ranks)
    ]  # fmt: skip
    expected = [row.ids[at] for row in data for at in range(1, len(row.ids)) if row.mask[at]]
    before = [row.ids[at - 1] for row in data for at in range(1, len(row.ids)) if row.mask[at]]
    inputs = [-1] * len(expected)
    for pack in packs:
        assert pack.batch.targets.tolist() == expected
        assert pack.batch.input_ids.shape[1] % sequence == 0
        which = range(len(expected)) if pack.chosen_rows is None else pack.chosen_rows.tolist()
        held = pack.batch.input_ids[0][pack.chosen].tolist()
        assert pack.chosen_targets.tolist() == [expected[at] for at in which]
        for at, value in zip(which, held, strict=True):
            assert inputs[at] == -1
            inputs[at] = value
    assert inputs == before


def test_a_packed_rows_documents_are_sequences_of_their_own() -> None:
    row = Row([5, 6, 7, 8, 9, 4], [1, 1, 1, 1, 1, 1], [2, 3, 1])
    pack = build_pack([row], [0])
    assert pack.batch.input_ids[0, :3].tolist() == [5, 7, 8]
    assert pack.batch.targets.tolist() == [6, 8, 9]
    assert pack.position_ids[:3].tolist() == [0, 0, 1]
    assert pack.attend.cu_q.tolist()[:3] == [0, 1, 3]


def test_a_rank_without_rows_gets_a_pack_that_trains_nothing() -> None:
    pack = build_pack([], [], row_multiple=4, pack_multiple=8, context_rank=1, context_ranks=2)
    assert pack.batch.input_ids.shape[1] > 0
    assert len(pack.batch.targets) == 0


@given(chunks=st.lists(st.integers(1, 4), min_size=1, max_size=4), ranks=st.sampled_from([2, 3]))
@settings(max_examples=20, deadline=None)
def test_context_ranks_attend_as_one_would(chunks: list[int], ranks: int) -> None:
    lengths = [2 * ranks * chunk for chunk in chunks]
    draw = torch.Generator().manual_seed(5)
    query = torch.randn(sum(lengths), 4, 8, generator=draw)
    key, value = (torch.randn(sum(lengths), 2, 8, generator=draw) for _ in range(2))
    whole = packed_attention(query, key, value, attend(lengths, 0, 1))
    order = torch.cat([local_tokens(lengths, rank, ranks) for rank in range(ranks)])
    gathered_key, gathered_value = key[order], value[order]
    parts = []
    for rank in range(ranks):
        plan = attend(lengths, rank, ranks)
        held = local_tokens(lengths, rank, ranks)
        parts.append(packed_attention(query[held], gathered_key[plan.keys], gathered_value[plan.keys], plan))
    torch.testing.assert_close(torch.cat(parts), whole[order])


@given(chunks=st.lists(st.integers(1, 5), min_size=1, max_size=4), ranks=st.integers(2, 5))
def test_all_ranks_have_the_same_work(chunks: list[int], ranks: int) -> None:
    lengths = [2 * ranks * chunk for chunk in chunks]

    def scores(rank: int) -> int:
        plan = attend(lengths, rank, ranks)
        sizes = zip(plan.cu_q.diff().tolist(), plan.cu_k.diff().tolist(), strict=True)
        return sum(q * k - q * (q - 1) // 2 for q, k in sizes)

    assert len({scores(rank) for rank in range(ranks)}) == 1
