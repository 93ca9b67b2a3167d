"""Files and folders that appear whole or not at all."""

import os
from pathlib import Path

import pytest
from rljob_trainer import atomic_files
from rljob_trainer.atomic_files import replaced_file, replaced_folder, write_file


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_file_is_replaced_in_one_step(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    write_file(path, "old")
    with replaced_file(path) as temporary:
        temporary.write_bytes(b"new")
        assert path.read_bytes() == b"old"
    assert path.read_bytes() == b"new"
    assert names(tmp_path) == ["a.json"]


def test_a_file_that_cannot_be_written_leaves_the_old_one_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    write_file(path, "old")

    def interrupted() -> None:
        with replaced_file(path) as temporary:
            temporary.write_bytes(b"half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert path.read_bytes() == b"old"
    assert names(tmp_path) == ["a.json"]


def test_new_files_have_the_mode_of_the_umask(tmp_path: Path) -> None:
    write_file(tmp_path / "a", "x")
    (tmp_path / "b").write_text("x")
    assert (tmp_path / "a").stat().st_mode == (tmp_path / "b").stat().st_mode


@pytest.mark.parametrize(
    ("options", "order"),
    [
        ({"fsync": False}, ["rename"]),
        ({}, ["file", "rename"]),
        ({"fsync_folder": True}, ["file", "rename", "folder"]),
    ],
)
def test_the_content_is_on_the_disk_before_the_name_and_the_name_before_the_end(
    options: dict[str, bool], order: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: list[str] = []
    replace = Path.replace
    monkeypatch.setattr(atomic_files, "fsync_file", lambda path: steps.append("file"))
    monkeypatch.setattr(atomic_files, "fsync_dir", lambda path: steps.append("folder"))
    monkeypatch.setattr(Path, "replace", lambda self, target: (steps.append("rename"), replace(self, target)))
    write_file(tmp_path / "a", "x", **options)
    assert steps == order


def test_a_folder_takes_the_place_of_another(tmp_path: Path) -> None:
    target = tmp_path / "model"
    for content in ("first", "second"):
        with replaced_folder(target, fsync=True) as fresh:
            (fresh / "hf").mkdir(parents=True)
            (fresh / "hf/config.json").write_text(content)
    assert (target / "hf/config.json").read_text() == "second"
    assert names(tmp_path) == ["model"]


def test_a_folder_that_fails_leaves_the_old_one_and_nothing_else(tmp_path: Path) -> None:
    target = tmp_path / "model"
    target.mkdir()
    (target / "old").touch()
    (tmp_path / ".model.new").mkdir()  # of a process that was killed

    def fails() -> None:
        with replaced_folder(target) as fresh:
            fresh.mkdir()
            (fresh / "new").touch()
            raise ValueError("half")

    with pytest.raises(ValueError, match="half"):
        fails()
    assert names(tmp_path) == ["model"]
    assert names(target) == ["old"]


def test_a_folder_whose_replacement_was_killed_half_way_is_not_lost(tmp_path: Path) -> None:
    target, old = tmp_path / "model", tmp_path / ".model.old"
    old.mkdir()
    (old / "old").touch()

    def fails() -> None:
        with replaced_folder(target):
            raise ValueError("full")

    with pytest.raises(ValueError, match="full"):
        fails()
    assert names(tmp_path) == ["model"]
    assert names(target) == ["old"]


def test_a_folder_that_cannot_be_renamed_is_put_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "model"
    target.mkdir()
    (target / "old").touch()
    rename = os.rename

    def refuses(source: Path, place: Path) -> None:
        if source.name == ".model.new":
            raise OSError("no")
        rename(source, place)

    monkeypatch.setattr(atomic_files.os, "rename", refuses)
    with pytest.raises(OSError, match="no"), replaced_folder(target) as fresh:
        fresh.mkdir()
    assert names(tmp_path) == ["model"]
    assert names(target) == ["old"]
