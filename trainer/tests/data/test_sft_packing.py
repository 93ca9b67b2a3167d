"""Packing and the store of tokenised demonstrations."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rljob_api.errors import UserError
from rljob_api.v1alpha1.data import SftDataset
from rljob_trainer.data import SftSource, sft
from rljob_trainer.data.packing import pack


@given(st.integers(1, 60).flatmap(lambda c: st.tuples(st.just(c), st.lists(st.integers(1, c), max_size=60))))
def test_every_document_is_packed_once_and_tightly(case: tuple[int, list[int]]) -> None:
    capacity, lengths = case
    sequences = pack(lengths, capacity)
    assert sorted(number for sequence in sequences for number in sequence) == list(range(len(lengths)))
    loads = [sum(lengths[number] for number in sequence) for sequence in sequences]
    assert all(load <= capacity for load in loads)
    # What any-fit packings promise: no two sequences would fit into one.
    assert all(a + b > capacity for at, a in enumerate(loads) for b in loads[:at])


def test_what_does_not_fit_is_an_error() -> None:
    with pytest.raises(ValueError, match="document 1 has 5 tokens; a sequence has room for 1 to 4"):
        pack([1, 5], 4)
    with pytest.raises(ValueError, match="document 0 has 0 tokens"):
        pack([0], 4)


def write(folder: Path, sizes: list[int]) -> None:
    rows = [
        {"segments": [{"text": " a", "train": False}, {"text": " b" * (size - 1), "train": True}]} for size in sizes
    ]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def make(folder: Path, tokenizer: Any, **options: Any) -> SftSource:
    dataset = SftDataset.model_validate({"path": "rows.jsonl", "format": "segments"})
    given_ = {"batch_size": 2, "seed": 1, "max_length": 8, "packing": True} | options
    return SftSource(dataset, tokenizer, folder, **given_)


def test_packed_rows_hold_whole_demonstrations(tmp_path: Path, tokenizer: Any) -> None:
    write(tmp_path, [2, 3, 5, 6, 8, 9])
    packed = make(tmp_path, tokenizer)
    assert [row.lengths for row in packed.rows] == [[8], [6, 2], [5, 3]]
    first, second = tokenizer.encode(" a b", add_special_tokens=False)
    for row in packed.rows:
        assert row.lengths is not None
        assert sum(row.lengths) == len(row.input_ids) == len(row.loss_mask)
        for length in row.lengths:
            start = sum(row.lengths[: row.lengths.index(length)])
            assert row.input_ids[start : start + length] == [first] + [second] * (length - 1)
            assert row.loss_mask[start : start + length] == [0] + [1] * (length - 1)
    assert packed.skipped == 1
    assert len(packed) == 3
    assert [row.lengths for row in make(tmp_path, tokenizer, packing=False).rows] == [None] * 5


def test_tokenised_once_per_content_and_settings(
    tmp_path: Path, tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path, [2, 3, 5])
    calls: list[object] = []
    original = sft.tokenize_files

    def counted(*arguments: Any, **options: Any) -> Any:
        calls.append(arguments)
        return original(*arguments, **options)

    monkeypatch.setattr(sft, "tokenize_files", counted)
    whole = [row.input_ids for row in make(tmp_path, tokenizer).rows]
    assert [row.input_ids for row in make(tmp_path, tokenizer).rows] == whole
    assert len(calls) == 1
    make(tmp_path, tokenizer, max_length=9)
    assert len(calls) == 2
    write(tmp_path, [2, 3, 5, 7])
    make(tmp_path, tokenizer)
    assert len(calls) == 3
    # A cache that was cut short, or left half made by a process that died, is made again.
    for ids in (tmp_path / "cache/sft").glob("*/ids.bin"):
        ids.write_bytes(ids.read_bytes()[:-4])
    for folder in list((tmp_path / "cache/sft").glob("[!.]*")):
        shutil.copytree(folder, folder.with_name(f".{folder.name}.new"))
    assert sum(sum(row.lengths or []) for row in make(tmp_path, tokenizer).rows) == 17
    assert len(calls) == 4


def test_a_row_that_cannot_be_used_leaves_nothing_behind(tmp_path: Path, tokenizer: Any) -> None:
    (tmp_path / "rows.jsonl").write_text('{"segments": [{"text": "a", "train": 1}]}\n', encoding="utf-8")
    with pytest.raises(UserError, match="row 0"):
        make(tmp_path, tokenizer)
    assert list((tmp_path / "cache/sft").glob("*[!k]")) == []


@pytest.mark.slow
def test_several_processes_make_the_same_store(tmp_path: Path, tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rljob_trainer.data.rows._BLOCK_BYTES", 1000)
    write(tmp_path, [2 + number % 6 for number in range(200)])
    seen: list[tuple[int, int]] = []
    one = make(tmp_path, tokenizer, processes=1)
    alone = list(one.rows)
    shutil.rmtree(tmp_path / "cache")
    two = make(tmp_path, tokenizer, processes=2, progress=lambda done, total: seen.append((done, total)))
    assert list(two.rows) == alone
    assert seen[-1][0] == seen[-1][1] == (tmp_path / "rows.jsonl").stat().st_size


@settings(max_examples=20, deadline=None)
@given(sizes=st.lists(st.integers(2, 8), min_size=1, max_size=20), seed=st.integers(0, 9))
def test_an_epoch_of_packed_batches_has_every_token(
    tmp_path_factory: pytest.TempPathFactory, tokenizer: Any, sizes: list[int], seed: int
) -> None:
    folder = tmp_path_factory.mktemp("rows")
    write(folder, sizes)
    made = make(folder, tokenizer, seed=seed, batch_size=1)
    epoch = [row for step in range(len(made)) for row in made.batch(step)]
    assert sorted(length for row in epoch for length in row.lengths or []) == sorted(sizes)
