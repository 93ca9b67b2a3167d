"""Demonstrations: which tokens the loss is taken on, and batches by step."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rljob_api.errors import UserError
from rljob_api.v1alpha1.data import SftDataset
from rljob_trainer.data import SftSource

CHAT = (
    "{% for m in messages %}{{ '<think>' if m.role == 'assistant' else '<search>' }}{{ m.content }}"
    "{{ '<eos>' if m.role == 'assistant' else '</search>' }}{% endfor %}"
    "{% if add_generation_prompt %}<think>{% endif %}"
)
FORGETFUL = "{% for m in messages %}{% if m.role != 'assistant' or loop.last %}{{ m.content }}{% endif %}{% endfor %}"


def source(folder: Path, tokenizer: Any, rows: list[dict[str, Any]], form: str, **options: Any) -> SftSource:
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    dataset = SftDataset.model_validate({"path": "rows.jsonl", "format": form})
    settings_ = {"batch_size": 4, "seed": 1, "max_length": 64} | options
    return SftSource(dataset, tokenizer, folder, **settings_)


def trained(row: Any, tokenizer: Any) -> tuple[str, str]:
    """All of the row's text, and the trained part."""
    chosen = [token for token, mask in zip(row.input_ids, row.loss_mask, strict=True) if mask]
    return tokenizer.decode(row.input_ids), tokenizer.decode(chosen)


@pytest.fixture
def chat(tokenizer: Any) -> Any:
    template = tokenizer.chat_template
    tokenizer.chat_template = CHAT
    yield tokenizer
    tokenizer.chat_template = template


def test_segments(tmp_path: Path, tokenizer: Any) -> None:
    segments = [{"text": " a b", "train": False}, {"text": " c", "train": True}, {"text": " d", "train": False}]
    (row,) = source(tmp_path, tokenizer, [{"segments": segments}], "segments").rows
    assert trained(row, tokenizer) == (" a b c d", " c")
    assert row.loss_mask == [0, 0, 1, 0]


def test_messages_train_every_turn_of_the_assistant(tmp_path: Path, chat: Any) -> None:
    turns = [("user", " a"), ("assistant", " b"), ("user", " c"), ("assistant", " d")]
    messages = [{"role": role, "content": content} for role, content in turns]
    (row,) = source(tmp_path, chat, [{"messages": messages}], "messages").rows
    assert trained(row, chat) == (
        "<search> a</search><think> b<eos><search> c</search><think> d<eos>",
        " b<eos> d<eos>",
    )


def test_conversations_as_bespoke_stratos_has_them(tmp_path: Path, chat: Any) -> None:
    turns = [{"from": "user", "value": " a"}, {"from": "assistant", "value": " b"}]
    (row,) = source(tmp_path, chat, [{"system": " h", "conversations": turns}], "conversations").rows
    assert trained(row, chat) == ("<search> h</search><search> a</search><think> b<eos>", " b<eos>")
    with pytest.raises(UserError, match=r"row 0: `conversations` must be a list of \{from, value\} with `from` one of"):
        source(tmp_path, chat, [{"conversations": [{"from": "robot", "value": "x"}]}], "conversations")


def test_prompt_and_completion(tmp_path: Path, chat: Any) -> None:
    (text,) = source(tmp_path, chat, [{"prompt": " a", "completion": " b"}], "prompt_completion").rows
    assert trained(text, chat) == (" a b<eos>", " b<eos>")
    prompt = [{"role": role, "content": f" {role[0]}"} for role in ("user", "assistant", "user")]
    completion = [{"role": "assistant", "content": " d"}]
    (row,) = source(tmp_path, chat, [{"prompt": prompt, "completion": completion}], "prompt_completion").rows
    assert trained(row, chat)[1] == " d<eos>"


def test_a_template_that_rewrites_turns_is_refused(tmp_path: Path, chat: Any) -> None:
    chat.chat_template = FORGETFUL
    turns = [("user", " a"), ("assistant", " b"), ("user", " c"), ("assistant", " d")]
    messages = [{"role": role, "content": content} for role, content in turns]
    with pytest.raises(UserError, match=r"row 0: the chat template does not show exactly what the assistant wrote"):
        source(tmp_path, chat, [{"messages": messages}], "messages")


def test_long_and_untrained_rows_are_left_out(tmp_path: Path, tokenizer: Any) -> None:
    rows = [{"segments": [{"text": " a" * size, "train": size != 2}]} for size in (1, 2, 3, 9)]
    made = source(tmp_path, tokenizer, rows, "segments", max_length=5)
    assert (len(made), made.skipped) == (2, 1)
    with pytest.raises(UserError, match=r"maxSequenceLength: all 4 rows|all \d rows"):
        source(tmp_path, tokenizer, rows[3:], "segments", max_length=5)
    with pytest.raises(UserError, match="has a token to train on"):
        source(tmp_path, tokenizer, rows[1:2], "segments")


@pytest.mark.parametrize("segments", [None, "text", [], [{"text": "a"}], [{"text": "a", "train": 1}]])
def test_malformed_segments_are_named(tmp_path: Path, tokenizer: Any, segments: Any) -> None:
    with pytest.raises(UserError, match=r"spec.sft.dataset: row 0"):
        source(tmp_path, tokenizer, [{"segments": segments}], "segments")


@settings(max_examples=40, deadline=None)
@given(count=st.integers(1, 11), size=st.integers(1, 7), seed=st.integers(0, 50))
def test_batches_by_step_make_whole_epochs(
    tmp_path_factory: pytest.TempPathFactory, tokenizer: Any, count: int, size: int, seed: int
) -> None:
    rows = [{"segments": [{"text": " a" * (number + 1), "train": True}]} for number in range(count)]
    made = source(tmp_path_factory.mktemp("rows"), tokenizer, rows, "segments", batch_size=size, seed=seed)
    steps = [made.batch(step) for step in range(3 * count)]
    stream = [len(row.input_ids) for batch in steps for row in batch]
    for epoch in range(len(stream) // count):
        assert sorted(stream[epoch * count : (epoch + 1) * count]) == list(range(1, count + 1))
    # A resumed run asks for any step and gets what an uninterrupted one got.
    assert made.batch(count) == steps[count]
