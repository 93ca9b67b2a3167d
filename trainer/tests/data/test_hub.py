"""Data sets on the Hub, against a small server that speaks its protocol."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from rljob_api.errors import UserError
from rljob_api.v1alpha1.data import PromptDataset
from rljob_api.v1alpha1.hub_path import HubPath, parse_hub_path
from rljob_trainer.data import load_eval
from rljob_trainer.data.hub import HubAccess, fetch, missing_shards, select

from .hub_data_server import Hub, serving

CARD = """---
configs:
- config_name: default
  data_files:
  - split: train
    path: data/train-*
- config_name: all
  data_files: [{split: train, path: "all/*"}]
---
# Made up
"""


@pytest.fixture
def hub() -> Iterator[Hub]:
    with serving() as server:
        yield server


def rows(*labels: int) -> bytes:
    return b"".join(json.dumps({"prompt": " a", "label": label}).encode() + b"\n" for label in labels)


def test_a_split_is_loaded_once_and_offline_from_then_on(hub: Hub, tmp_path: Path, tokenizer: Any) -> None:
    hub.files = {
        "README.md": CARD.encode(),
        "data/train-00000-of-00002.jsonl": rows(0, 1),
        "data/train-00001-of-00002.jsonl": rows(2),
        "all/everything.jsonl": rows(7),
    }
    cache = tmp_path / "hub"
    online = HubAccess(cache, endpoint=hub.endpoint)
    dataset = PromptDataset.model_validate({"path": "hf://org/made-up", "applyChatTemplate": False})
    assert [row.label for row in load_eval(dataset, tokenizer, tmp_path, "spec.x", online).rows] == [0, 1, 2]
    before = hub.requests
    offline = HubAccess(cache, offline=True, endpoint=hub.endpoint)
    assert [row.label for row in load_eval(dataset, tokenizer, tmp_path, "spec.x", offline).rows] == [0, 1, 2]
    assert hub.requests == before
    (subset,) = fetch("hf://org/made-up:all@main/train", "train", "spec.x.path", online)
    assert subset.read_bytes() == rows(7)
    # Half of the shards in the cache is no data set.
    next(cache.rglob("train-00001-of-00002.jsonl")).unlink()
    with pytest.raises(UserError, match=r"data/train-00001-of-00002.jsonl is not in the cache"):
        load_eval(dataset, tokenizer, tmp_path, "spec.x", offline)


def test_what_is_not_there_is_said_by_name(hub: Hub, tmp_path: Path) -> None:
    hub.files = {"dev.jsonl": rows(1), "notes.txt": b""}
    access = HubAccess(tmp_path / "hub", endpoint=hub.endpoint)
    with pytest.raises(UserError, match=r"spec.x: hf://org/other: there is no such data set, or it is private"):
        fetch("hf://org/other", "train", "spec.x", access)
    with pytest.raises(UserError, match=r"hf://org/made-up@old: there is no such revision"):
        fetch("hf://org/made-up@old", "train", "spec.x", access)
    with pytest.raises(UserError, match=r"no .parquet or .jsonl file for split 'test'; its data files are: dev.jsonl"):
        fetch("hf://org/made-up", "test", "spec.x", access)
    with pytest.raises(UserError, match=r"not in the cache, and may not be downloaded \(offline\)"):
        fetch("hf://org/made-up", "dev", "spec.x", HubAccess(tmp_path / "empty", offline=True))
    with pytest.raises(UserError, match="not of the form hf://owner/name"):
        fetch("hf://made-up", "train", "spec.x", access)


def test_paths_name_config_revision_and_split() -> None:
    assert parse_hub_path("hf://a/b") == HubPath("a/b", None, None, "train")
    assert parse_hub_path("hf://a/b:c@v1.0/test", "dev") == HubPath("a/b", "c", "v1.0", "test")
    assert parse_hub_path("hf://a/b@5d5d", "dev") == HubPath("a/b", None, "5d5d", "dev")
    for wrong in ("hf://a", "hf://a/b/c/d", "hf:///b", "hf://a/b:", "hf://a/../b", "hf://a b/c"):
        with pytest.raises(ValueError, match="not of the form"):
            parse_hub_path(wrong)


def test_files_of_a_split_without_a_card() -> None:
    def chosen(names: list[str], path: str) -> list[str]:
        return select(names, parse_hub_path(path), [])

    flashrag = ["nq/train.jsonl", "nq/test.jsonl", "hotpotqa/dev.jsonl", "README.md"]
    assert chosen(flashrag, "hf://a/b:nq/train") == ["nq/train.jsonl"]
    assert chosen(flashrag, "hf://a/b:hotpotqa/dev") == ["hotpotqa/dev.jsonl"]
    assert chosen(flashrag, "hf://a/b:hotpotqa/train") == []
    assert chosen(["dapo-math-17k.jsonl", "x.py"], "hf://a/b") == ["dapo-math-17k.jsonl"]
    assert chosen(["data/test-00000-of-00001.parquet"], "hf://a/b") == []
    assert chosen(["train.jsonl", "train.parquet"], "hf://a/b") == ["train.parquet"]
    assert chosen(["constrained.jsonl", "test.jsonl"], "hf://a/b") == ["constrained.jsonl"]
    assert missing_shards(["d/train-00000-of-00002.parquet"]) == "d/train-00001-of-00002.parquet"
    assert missing_shards(["train.jsonl"]) is None
