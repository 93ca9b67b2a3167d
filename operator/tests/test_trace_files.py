"""`scripts/trace_files.py`: what it takes for a way, and that its marks still name functions."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "scripts/trace_files.py"
_spec = importlib.util.spec_from_file_location("trace_files", SCRIPT)
trace_files = importlib.util.module_from_spec(_spec)
sys.modules["trace_files"] = trace_files
_spec.loader.exec_module(trace_files)


def call(time: int, kind: str, path: str, name: str, thread: str = "MainThread"):
    return trace_files.Call(time, kind, thread, f"{trace_files.ROOT}/operator/rljob_operator/{path}", name)


def test_a_way_is_what_is_called_between_its_marks():
    calls = [
        call(1, "C", "early.py", "f"),
        call(2, "C", "a.py", "A.begin"),
        call(3, "C", "b.py", "g"),
        call(3, "C", "aside.py", "g", thread="pulse"),
        call(4, "C", "a.py", "A.other"),
        call(5, "C", "z.py", "<lambda>"),
        call(6, "R", "z.py", "Z.end"),
        call(7, "C", "late.py", "f"),
    ]
    (way,) = trace_files.on_the_way(calls, [["a.py:A.begin", "*.py:*.end"]], ["pulse"])
    assert [Path(found.file).name for found in way] == ["a.py", "b.py", "z.py"]
    with pytest.raises(SystemExit, match=r"a\.py:A\.gone names is called"):
        trace_files.on_the_way(calls, [["a.py:A.gone", "*.py:*.end"]], [])


def test_the_way_of_an_rljob_is_found():
    done = subprocess.run(
        [sys.executable, str(SCRIPT), "rljob"], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    files = [line.split()[1] for line in done.stdout.splitlines() if line[:4].strip().isdigit() and "/" in line]
    assert files[0].startswith("operator/rljob_operator/")
    assert any(file.endswith("resources/rayjob.py") for file in files)
    assert len(files) == len(set(files)) < 70
