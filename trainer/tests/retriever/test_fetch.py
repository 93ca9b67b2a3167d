"""An index joined from its parts and a corpus unpacked: once, and from where a lost pod left it."""

import gzip
import json
from pathlib import Path

import pytest
from rljob_api.contract.progress import Preparation
from rljob_api.errors import UserError
from rljob_trainer.cluster import preparation
from rljob_trainer.retriever import fetch as module
from rljob_trainer.retriever.fetch import fetch

PARTS = {"part_aa": b"a" * 1000, "part_ab": b"b" * 700, "part_ac": b"c" * 3}
WHOLE = b"".join(PARTS.values())


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, content in PARTS.items():
        (tmp_path / name).write_bytes(content)
    (tmp_path / "wiki.jsonl.gz").write_bytes(gzip.compress(b'{"id": "0"}\n' * 500))
    return tmp_path


def test_joins_and_unpacks(folder: Path) -> None:
    fetch(
        str(folder),
        index="wiki/e5.index",
        indexParts=list(PARTS),
        corpus="wiki/wiki.jsonl",
        corpusArchive="wiki.jsonl.gz",
    )
    assert (folder / "wiki/e5.index").read_bytes() == WHOLE
    assert (folder / "wiki/wiki.jsonl").read_bytes() == b'{"id": "0"}\n' * 500
    assert sorted(file.name for file in (folder / "wiki").iterdir()) == ["e5.index", "wiki.jsonl"]
    assert (folder / "part_aa").is_file(), "what was not downloaded is the user's"


def test_what_is_there_is_not_made_again(folder: Path) -> None:
    (folder / "e5.index").write_bytes(b"mine")
    fetch(str(folder), index="e5.index", indexParts=["missing"])
    assert (folder / "e5.index").read_bytes() == b"mine"


def test_a_lost_pod_goes_on_after_the_last_whole_part(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    copy, seen = module._copy, []

    def dies(content, file, stage, position, total):  # type: ignore[no-untyped-def]
        if stage.startswith("index, part 3"):
            file.write(b"half")
            file.flush()
            raise ConnectionError("the pod is lost")
        seen.append(stage)
        copy(content, file, stage, position, total)

    monkeypatch.setattr(module, "_copy", dies)
    with pytest.raises(ConnectionError):
        fetch(str(folder), index="e5.index", indexParts=list(PARTS))
    assert not (folder / "e5.index").exists(), "half an index is not there"
    again: list[str] = []
    monkeypatch.setattr(module, "_copy", lambda c, f, stage, p, t: (again.append(stage), copy(c, f, stage, p, t)))
    fetch(str(folder), index="e5.index", indexParts=list(PARTS))
    assert (folder / "e5.index").read_bytes() == WHOLE
    assert again == ["index, part 3 of 3"]


def test_what_the_state_counts_is_in_the_file(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A pod that is killed right after the state was written must find that many bytes."""
    write, sizes = module.write_file, []

    def noted(path: Path, content: bytes) -> None:
        sizes.append((json.loads(content)["size"], (folder / ".e5.index.joining").stat().st_size))
        write(path, content)

    monkeypatch.setattr(module, "write_file", noted)
    fetch(str(folder), index="e5.index", indexParts=list(PARTS))
    assert sizes == [(1000, 1000), (1700, 1700), (1703, 1703)]


def test_other_parts_than_before_begin_anew(folder: Path) -> None:
    (folder / ".e5.index.joining").write_bytes(b"x" * 1000)
    (folder / ".e5.index.joined").write_text(json.dumps({"parts": ["other"], "size": 1000}))
    fetch(str(folder), index="e5.index", indexParts=list(PARTS))
    assert (folder / "e5.index").read_bytes() == WHOLE


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({}, "give index and indexParts"),
        ({"index": "e5.index"}, "give index and indexParts"),
        ({"index": "../e5.index", "indexParts": ["part_aa"]}, "outside the job's directory"),
        ({"index": "e5.index", "indexParts": ["part_zz"]}, "part_zz does not exist"),
        ({"index": "e5.index", "indexParts": ["hf://owner"]}, "not of the form hf://owner/name[@revision]/file"),
        ({"index": "e5.index", "indexParts": ["hf://o/n/../../x"]}, "not of the form"),
        ({"corpus": "c.jsonl", "corpusArchive": "cut.gz"}, "is no whole gzip file"),
        ({"corpus": "c.jsonl", "corpusArchive": "part_aa.gz"}, "is no whole gzip file"),
    ],
)
def test_a_mistake_is_said_in_a_sentence(folder: Path, arguments: dict[str, object], said: str) -> None:
    (folder / "cut.gz").write_bytes((folder / "wiki.jsonl.gz").read_bytes()[:-20])
    (folder / "part_aa.gz").write_bytes(PARTS["part_aa"])
    with pytest.raises(UserError) as refused:
        fetch(str(folder), **arguments)  # type: ignore[arg-type]
    assert said in refused.value.message
    assert not (folder / "c.jsonl").exists()


def test_the_report_is_what_the_operator_reads() -> None:
    gib = 1 << 30
    assert json.loads(Preparation.of("index", 12 * gib, 60 * gib).to_json()) == {
        "stage": "index", "percent": 20, "amount": "12.0 of 60.0 GiB",
    }  # fmt: skip
    assert json.loads(Preparation.of("data", 0, 0).to_json()) == {"stage": "data"}


def test_outside_a_cluster_nothing_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    monkeypatch.setattr(preparation, "_patch", lambda *_: pytest.fail("reported"))
    preparation.report("index", 1, 2)
