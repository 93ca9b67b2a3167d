"""Prompts: what is read, what is refused, and a stream that goes on where it stopped."""

import json
import logging
import re
from datetime import date
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rljob_api.errors import UserError
from rljob_api.v1alpha1.data import PromptDataset, TrainDataset
from rljob_trainer.data import PromptSource, load_eval
from rljob_trainer.data.prompts import load_prompts


def write(folder: Path, rows: list[dict[str, Any]], name: str = "rows.jsonl") -> str:
    if name.endswith(".parquet"):
        pq.write_table(pa.Table.from_pylist(rows), folder / name)
    else:
        (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return name


def dataset(path: str, **fields: Any) -> TrainDataset:
    return TrainDataset.model_validate({"path": path, "applyChatTemplate": False} | fields)


def source(folder: Path, tokenizer: Any, count: int = 10, seed: int = 1, **fields: Any) -> PromptSource:
    rows = [{"prompt": " a" * (1 + number % 5), "label": number} for number in range(count)]
    return PromptSource(dataset(write(folder, rows), **fields), tokenizer, folder, seed)


@pytest.mark.parametrize("name", ["search.jsonl", "search.parquet"])
def test_search_r1s_rows_are_read_by_dotted_keys(tmp_path: Path, tokenizer: Any, name: str) -> None:
    rows = [
        {
            "prompt": [{"role": "user", "content": " a b"}],
            "reward_model": {"style": "rule", "ground_truth": {"target": ["c", "d"]}},
            "data_source": "nq",
            "extra_info": {"split": "test", "index": 7},
        }
    ]
    fields = {
        "applyChatTemplate": True,
        "labelKey": "reward_model.ground_truth.target",
        "sourceKey": "data_source",
        "metadataKey": "extra_info",
    }
    (row,) = load_eval(dataset(write(tmp_path, rows, name), **fields), tokenizer, tmp_path).rows
    assert row.prompt == " a b"
    assert row.prompt_ids == tokenizer.encode(" a b", add_special_tokens=False)
    assert row.label == ["c", "d"]
    assert row.source == "nq"
    assert row.metadata == {"split": "test", "index": 7}


def test_a_system_prompt_comes_first(tmp_path: Path, tokenizer: Any) -> None:
    path = write(tmp_path, [{"prompt": " b", "label": 1}])
    for template in (True, False):
        data = dataset(path, systemPrompt=" a", applyChatTemplate=template)
        assert load_eval(data, tokenizer, tmp_path).rows[0].prompt == " a b"


def test_long_prompts_are_left_out_and_counted(
    tmp_path: Path, tokenizer: Any, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        stream = source(tmp_path, tokenizer, maxPromptLength=3)
    assert (len(stream), stream.skipped) == (6, 4)
    assert "4 of 10 rows have more than 3 prompt tokens" in caplog.text
    assert {row.label for row in stream.next(6)} == {0, 1, 2, 5, 6, 7}
    long = write(tmp_path, [{"prompt": " a a a", "label": 1}])
    with pytest.raises(UserError, match=r"maxPromptLength: all 1 rows of .* have more than 2 prompt tokens"):
        PromptSource(dataset(long, maxPromptLength=2), tokenizer, tmp_path, 1)


@settings(max_examples=50, deadline=None)
@given(
    count=st.integers(1, 12),
    seed=st.integers(0, 100),
    shuffle=st.booleans(),
    before=st.lists(st.integers(0, 9), max_size=6),
    after=st.lists(st.integers(1, 9), min_size=1, max_size=6),
)
def test_a_restored_stream_goes_on_as_if_never_stopped(
    tmp_path_factory: pytest.TempPathFactory,
    tokenizer: Any,
    count: int,
    seed: int,
    shuffle: bool,
    before: list[int],
    after: list[int],
) -> None:
    folder = tmp_path_factory.mktemp("rows")
    whole, first, second = (source(folder, tokenizer, count, seed, shuffle=shuffle) for _ in range(3))
    expected = whole.next(sum(before) + sum(after))
    taken = [row for size in before for row in first.next(size)]
    second.restore(json.loads(json.dumps(first.state())))
    taken += [row for size in after for row in second.next(size)]
    assert taken == expected
    for epoch in range(len(expected) // count):
        labels = [row.label for row in expected[epoch * count : (epoch + 1) * count]]
        assert sorted(labels) == list(range(count))
        assert shuffle or labels == list(range(count))


def test_epochs_and_seeds_have_orders_of_their_own(tmp_path: Path, tokenizer: Any) -> None:
    stream = source(tmp_path, tokenizer, 10)
    first, second = stream.next(10), stream.next(10)
    assert first != second
    assert first != source(tmp_path, tokenizer, 10, seed=2).next(10)


def test_other_data_is_no_continuation(tmp_path: Path, tokenizer: Any) -> None:
    stream = source(tmp_path, tokenizer, 10)
    stream.next(3)
    state = stream.state()
    with pytest.raises(UserError, match=r"made with other prompts \(10 rows.*now 9 rows"):
        source(tmp_path, tokenizer, 9).restore(state)
    stream.restore({})
    assert stream.state()["position"] == 0


def test_wrong_files_are_named(tmp_path: Path, tokenizer: Any) -> None:
    def load(path: str, **fields: Any) -> None:
        load_eval(PromptDataset.model_validate({"path": path} | fields), tokenizer, tmp_path, "spec.x")

    with pytest.raises(UserError, match=rf"spec.x.path: no.jsonl: {tmp_path}/no.jsonl does not exist"):
        load("no.jsonl")
    with pytest.raises(UserError, match=r"spec.x.path: hf://org is not of the form hf://owner/name"):
        load("hf://org")
    (tmp_path / "bad.jsonl").write_text('{"prompt": "a", "label": 1}\n{"prompt": \n', encoding="utf-8")
    with pytest.raises(UserError, match=r"bad.jsonl, line 2: not valid JSON"):
        load("bad.jsonl")
    (tmp_path / "list.jsonl").write_text("[1]\n", encoding="utf-8")
    with pytest.raises(UserError, match=r"line 1: a row must be an object, not list"):
        load("list.jsonl")
    (tmp_path / "bad.parquet").write_bytes(b"no parquet")
    with pytest.raises(UserError, match="is not a readable parquet file"):
        load("bad.parquet")
    (tmp_path / "rows.csv").write_text("a", encoding="utf-8")
    with pytest.raises(UserError, match=r"rows.csv is neither .jsonl nor .parquet"):
        load("rows.csv")
    (tmp_path / "empty.jsonl").write_text("\n", encoding="utf-8")
    with pytest.raises(UserError, match="has no rows"):
        load("empty.jsonl")
    path = write(tmp_path, [{"question": "a", "label": 1}])
    with pytest.raises(
        UserError, match=r"spec.x.inputKey: row 0 has no column 'prompt'; its columns are: label, question"
    ):
        load(path)
    with pytest.raises(UserError, match=r"spec.x.labelKey: row 0 has no column 'label.text'"):
        load(path, inputKey="question", labelKey="label.text")
    chat = write(tmp_path, [{"prompt": [{"role": "user", "content": "a"}], "label": 1}])
    with pytest.raises(UserError, match="is a list, not text"):
        load(chat, applyChatTemplate=False)
    broken = write(tmp_path, [{"prompt": [{"content": "a"}], "label": 1}])
    with pytest.raises(UserError, match=r"must be text or a list of .* messages, and is a list whose entry 0 is none"):
        load(broken)
    for value, kind in ((None, "null"), ([], "an empty list"), (5, "a number")):
        with pytest.raises(UserError, match=f"messages, and is {kind}"):
            load(write(tmp_path, [{"prompt": value, "label": 1}]))
        with pytest.raises(UserError, match=f"row 0: 'prompt' is {kind}, not text"):
            load(write(tmp_path, [{"prompt": value, "label": 1}]), applyChatTemplate=False)


def test_a_missing_or_strict_chat_template_is_explained(tmp_path: Path, tokenizer: Any) -> None:
    path = write(tmp_path, [{"prompt": "a", "label": 1}])
    template = tokenizer.chat_template
    try:
        tokenizer.chat_template = None
        with pytest.raises(UserError, match="the tokenizer has no chat template"):
            load_eval(dataset(path, applyChatTemplate=True), tokenizer, tmp_path)
        tokenizer.chat_template = "{{ raise_exception('roles must alternate') }}"
        with pytest.raises(UserError, match="the chat template refuses the messages: roles must alternate"):
            load_eval(dataset(path, applyChatTemplate=True), tokenizer, tmp_path)
    finally:
        tokenizer.chat_template = template


def test_limit_takes_the_first_rows(tmp_path: Path, tokenizer: Any) -> None:
    for name in ("rows.jsonl", "rows.parquet"):
        path = write(tmp_path, [{"prompt": " a", "label": number} for number in range(5)], name)
        assert [row.label for row in load_eval(dataset(path, limit=2), tokenizer, tmp_path).rows] == [0, 1]


def _messages(path: str) -> PromptDataset:
    return PromptDataset.model_validate({"path": path})


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "row 1, message 0: `content` is null"),
        (7, "row 1, message 0: `content` is a number"),
        ([{"type": "image", "image": "x.png"}], "row 1, message 0: `content` has a part of type 'image'"),
        ([None], "row 1, message 0: `content` has null among its parts; a part is {type: text, text: …}"),
        ([{"type": "text", "text": None}], "row 1, message 0: `content` has a part whose `text` is null, not text"),
    ],
)
def test_a_message_without_text_is_named(tmp_path: Path, tokenizer: Any, content: Any, message: str) -> None:
    rows = [{"prompt": "q", "label": "1"}, {"prompt": [{"role": "user", "content": content}], "label": "1"}]
    path = write(tmp_path, rows)
    with pytest.raises(UserError, match=re.escape(message)):
        load_prompts(_messages(path), tokenizer, tmp_path, "spec.data.train")


def test_a_row_without_a_source_has_none(tmp_path: Path, tokenizer: Any) -> None:
    path = write(tmp_path, [{"prompt": "q", "label": "1", "from": origin} for origin in (None, "nq", 3)])
    rows = load_prompts(dataset(path, sourceKey="from"), tokenizer, tmp_path, "spec.data.train").rows
    assert [row.source for row in rows] == ["", "nq", "3"]


def test_parts_of_text_are_one_text(tmp_path: Path, tokenizer: Any) -> None:
    parts = [{"type": "text", "text": "how "}, {"type": "text", "text": "many"}]
    rows = [{"prompt": [{"role": "user", "content": content}], "label": "1"} for content in ("how many", parts)]
    whole, joined = load_prompts(_messages(write(tmp_path, rows)), tokenizer, tmp_path, "spec.data.train").rows
    assert whole.prompt_ids == joined.prompt_ids


def test_long_integers_keep_their_digits(tmp_path: Path, tokenizer: Any) -> None:
    rows = [{"prompt": "q", "label": 10**29 + 1}, {"prompt": "q", "label": 2**63}, {"prompt": "q", "label": 1.5}]
    found = dataset(write(tmp_path, rows))
    labels = [row.label for row in load_prompts(found, tokenizer, tmp_path, "spec.data.train").rows]
    assert labels == [10**29 + 1, 2**63, 1.5]
    assert isinstance(labels[0], int)


def test_parquet_values_become_json_or_are_refused(tmp_path: Path, tokenizer: Any) -> None:
    table = {"prompt": ["q"], "day": [date(2020, 1, 2)], "price": [Decimal("1.50")], "raw": [b"x"], "unused": [b"y"]}
    pq.write_table(pa.table(table), tmp_path / "rows.parquet")

    def label(key: str) -> Any:
        return load_prompts(dataset("rows.parquet", labelKey=key), tokenizer, tmp_path, "spec.data.train").rows[0].label

    assert (label("day"), label("price")) == ("2020-01-02", "1.50")
    with pytest.raises(UserError, match=r"spec\.data\.train\.labelKey: row 0: a value of type bytes"):
        label("raw")
