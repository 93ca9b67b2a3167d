"""Import paths that users' manifests name keep working after a module has moved."""

import importlib
import re
import subprocess
import sys
from pathlib import Path

import pytest
from rljob_trainer.moved import MOVED, new_path

IN_MANIFESTS = (
    "rljob_trainer.quickstart.world", "rljob_trainer.quickstart.tiny_recipes", "rljob_trainer.data.recipes",
    "rljob_trainer.retriever.fetch", "rljob_trainer.convert.run", "rljob_trainer.convert.mapping",
    "rljob_trainer.rollout.types",
)  # fmt: skip


@pytest.mark.parametrize("name", IN_MANIFESTS)
def test_a_path_of_a_manifest_imports(name: str) -> None:
    done = subprocess.run([sys.executable, "-c", f"import {name}"], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


def test_the_warning_is_seen_and_names_the_users_line(tmp_path: Path) -> None:
    (tmp_path / "old_hooks.py").write_text("\nfrom rljob_trainer.rollout.types import Sample\n")
    code = "import sys; sys.path.insert(0, sys.argv[1]); import rljob_trainer, old_hooks"
    done = subprocess.run([sys.executable, "-c", code, tmp_path], capture_output=True, text=True, timeout=120)
    assert "old_hooks.py:2: FutureWarning: rljob_trainer.rollout.types has moved: import rljob.types" in done.stderr


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("rljob_trainer.rollout.types", "rljob.types"),
        ("rljob_trainer.convert", "rljob_trainer.export"),
        ("rljob_trainer.convert.mapping", "rljob_trainer.export.mapping"),
    ],
)
def test_both_paths_give_the_same_objects(old: str, new: str) -> None:
    sys.modules.pop(old, None)
    with pytest.warns(FutureWarning, match=f"{re.escape(old)} has moved: import {re.escape(new)}"):
        module = importlib.import_module(old)
    assert module is importlib.import_module(new)
    assert module.__spec__ is not None
    assert module.__spec__.name == new


def test_what_has_not_moved_is_not_found_elsewhere() -> None:
    assert new_path("rljob_trainer.converted") is None
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module("rljob_trainer.convert.no_such_module")


def test_every_target_exists() -> None:
    for target in MOVED.values():
        importlib.import_module(target)
