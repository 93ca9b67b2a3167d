"""Bucket planning and the digest that a GPU can compute."""

from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from rljob_trainer.training.weight_export import WeightExporter
from rljob_trainer.weights.buckets import TensorInfo, plan_buckets
from rljob_trainer.weights.fingerprint import block_sum, differing, digest, entries, tensor_sum, tensor_sums

from trainer.tests.weights.source import Source

TENSORS = st.lists(
    st.tuples(
        st.lists(st.integers(1, 64), min_size=1, max_size=2).map(tuple), st.sampled_from(["bfloat16", "float32"])
    ),
    max_size=30,
).map(lambda found: [TensorInfo(f"t{number:02}", shape, dtype) for number, (shape, dtype) in enumerate(found)])


@given(TENSORS, st.integers(1, 5000))
def test_every_tensor_is_in_one_bucket_and_buckets_keep_their_size(tensors: list[TensorInfo], limit: int) -> None:
    buckets = plan_buckets(tensors, limit)
    assert [tensor for bucket in buckets for tensor in bucket.tensors] == tensors
    for bucket in buckets:
        assert len({tensor.dtype for tensor in bucket.tensors}) == 1
        assert bucket.nbytes <= limit or len(bucket.tensors) == 1


def test_two_tensors_of_one_name_are_refused() -> None:
    one = TensorInfo("a", (2,), "float32")
    with pytest.raises(ValueError, match="same name"):
        plan_buckets([one, one])
    with pytest.raises(ValueError, match="0 bytes"):
        plan_buckets([one], 0)


def test_a_digest_sees_every_change() -> None:
    torch.manual_seed(0)
    tensors = {"a": torch.randn(7, 5), "b": torch.randn(33).bfloat16(), "c": torch.randn(3, 3)}
    table = entries(tensors)
    assert digest(table) == digest(dict(reversed(table.items())))
    for name in tensors:
        changed = {key: value.clone() for key, value in tensors.items()}
        changed[name].view(-1)[-1] += 1
        assert differing(table, entries(changed)) == [name]
    swapped = tensors | {"c": tensors["c"].T.contiguous()}
    assert differing(table, entries(swapped)) == ["c"]
    assert digest(entries(tensors | {"a": tensors["a"].reshape(5, 7)})) != digest(table)
    assert differing(table, {name: value for name, value in table.items() if name != "b"}) == ["b"]


def test_a_view_sums_like_its_copy() -> None:
    whole = torch.randn(40, 6)
    assert tensor_sum(whole[7:19]) == tensor_sum(whole[7:19].clone())
    assert tensor_sum(torch.zeros(4)) != tensor_sum(torch.zeros(5))


@pytest.mark.parametrize("chunk", [1, 8, 50, 1 << 24])
def test_many_tensors_sum_together_as_each_does_alone(chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rljob_trainer.weights.fingerprint.CHUNK_WORDS", chunk)
    torch.manual_seed(2)
    sizes = [(3, 5), (1,), (0,), (64, 2), (7,), (2, 2)]
    tensors = [torch.randn(size, dtype=dtype) for size in sizes for dtype in (torch.float32, torch.bfloat16)]
    assert tensor_sums(tensors).tolist() == [int(tensor_sum(tensor)) for tensor in tensors]
    assert tensor_sums([]).tolist() == []


def test_files_hold_what_the_table_says(tmp_path) -> None:  # type: ignore[no-untyped-def]
    from safetensors.torch import load_file

    torch.manual_seed(1)
    source = Source({"a": torch.randn(3, 4), "b": torch.randn(5), "c": torch.randn(2, 2).bfloat16()})
    exporter = WeightExporter(source, 0)
    plan = exporter.plan(60)
    assert len(plan) == 3
    for number, bucket in enumerate(plan):
        exporter.write(bucket, str(tmp_path / "v1" / f"{number}.safetensors"))
    sent, table = exporter.finish()
    read = {name: t for file in (tmp_path / "v1").iterdir() for name, t in load_file(file).items()}
    assert entries(read) == table
    assert digest(entries(source.tensors)) == sent
    assert exporter.finish()[1] == {}


@given(
    st.sampled_from([torch.bfloat16, torch.float32]),
    st.integers(1, 9),
    st.integers(1, 9),
    st.integers(0, 1),
    st.data(),
)
def test_sums_of_blocks_add_up_to_that_of_the_whole(
    dtype: torch.dtype, rows: int, pairs: int, axis: int, data: st.DataObject
) -> None:
    whole = torch.randn(rows, 2 * pairs).to(dtype)  # whole words, whatever the type
    unit = 1 if axis == 0 else 2
    cuts = data.draw(st.sets(st.integers(1, max(1, whole.shape[axis] // unit - 1)), max_size=3))
    bounds = sorted({0, whole.shape[axis], *(cut * unit for cut in cuts if cut * unit < whole.shape[axis])})
    total = 0
    for begin, end in pairwise(bounds):
        start = [0, 0]
        start[axis] = begin
        block = whole.narrow(axis, begin, end - begin)
        total += int(block_sum(block, whole.shape, start))
    assert (total - int(tensor_sum(whole))) % 2**64 == 0


def test_a_block_that_ends_within_a_word_has_no_sum() -> None:
    bias = torch.randn(7).bfloat16()
    parts = [int(block_sum(bias[start:stop], (7,), [start])) for start, stop in ((0, 4), (4, 7))]
    assert (sum(parts) - int(tensor_sum(bias))) % 2**64 == 0
    with pytest.raises(ValueError, match="whole words"):
        block_sum(bias[:3], (7,), [0])
    with pytest.raises(ValueError, match="whole words"):
        block_sum(torch.zeros(4, 3), (5, 4), [0, 0])
