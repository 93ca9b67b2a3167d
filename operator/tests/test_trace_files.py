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


def call(time: int, kind: str, path: str, name: str = "f", thread: str = "MainThread", since: int = 0, thing: str = ""):
    file = f"{trace_files.ROOT}/operator/rljob_operator/{path}"
    return trace_files.Call(time, kind, "1", thread, file, name, since, thing)


BEGUN, ENDED = call(1, "C", "main.py", "begin"), call(99, "R", "main.py", "end")
LEGS = [["main.py:begin", "main.py:end"]]


def on_the_way(*calls):
    found = trace_files.in_hand([BEGUN, *calls, ENDED], LEGS, ["pulse"], trace_files.RLJOB.builders)
    return {Path(file).name: things for file, things in found.items()}


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
    (way,) = trace_files.called_files(calls, [["a.py:A.begin", "*.py:*.end"]], ["pulse"])
    assert [Path(found.file).name for found in way] == ["a.py", "b.py", "z.py"]
    with pytest.raises(SystemExit, match=r"a\.py:A\.gone names is called"):
        trace_files.called_files(calls, [["a.py:A.gone", "*.py:*.end"]], [])


def test_on_the_way_is_what_has_the_thing_in_its_hands():
    assert on_the_way(
        call(2, "C", "called.py"),
        call(3, "H", "a.py", thing="JobView"),
        call(4, "H", "a.py", thing="Decision"),
        call(5, "H", "aside.py", thread="pulse", thing="JobView"),
    ) == {"a.py": ["JobView", "Decision"]}
    assert not on_the_way(call(100, "H", "late.py", thing="JobView"))


def test_what_a_call_does_that_changes_nothing_is_not_on_the_way():
    unchanged = call(7, "N", "policies/kueue.py", since=4)
    assert on_the_way(
        call(3, "H", "before.py", thing="Decision"),
        call(4, "H", "policies/kueue.py", thing="Decision"),
        call(5, "H", "within.py", thing="JobView"),
        unchanged,
        call(8, "H", "after.py", thing="Decision"),
    ) == {"before.py": ["Decision"], "after.py": ["Decision"]}


def test_builders_count_for_what_is_made_alone():
    assert on_the_way(
        call(2, "H", "resources/lease.py", thing="Context"),
        call(3, "H", "resources/rayjob.py", thing="Context"),
        call(5, "D", "labels.py", since=4),
        call(6, "M", "resources/rayjob.py", since=3),
        call(8, "D", "elsewhere.py", since=7),
    ) == {"rayjob.py": ["Context"], "labels.py": ["a part"]}


def test_the_thing_is_found_in_collections():
    hands = trace_files._Hands(trace_files.RLJOB._replace(things=(f"{__name__}.Thing",)))
    job = {"kind": "RLJob", "metadata": {}}
    for holding in (Thing(), [Thing()], {"a": (1, Thing())}, {1, Thing()}):
        assert hands.thing(holding) == "Thing"
    assert hands.thing({"type": "ADDED", "object": job}) == "RLJob (raw)"
    for other in (None, [], "RLJob", {"kind": "Pod", "metadata": {}}, {"kind": "RLJob"}, [[[[Thing()]]]]):
        assert not hands.thing(other)


class Thing:
    """What goes along."""


def test_the_way_of_an_rljob_is_found():
    done = subprocess.run(
        [sys.executable, str(SCRIPT), "rljob"], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    lines = [line.split() for line in done.stdout.splitlines() if line[:4].strip().isdigit() and "/" in line]
    files = [line[1] for line in lines]
    assert files[0].startswith("operator/rljob_operator/")
    assert len(files) == len(set(files)) <= 64
    on_the_way = [line[1] for line in lines if "*" in line]
    assert len(on_the_way) <= 35
    for file in ("main.py", "controller/plan.py", "policies/attempts.py", "resources/rayjob.py", "resources/pod.py"):
        assert f"operator/rljob_operator/{file}" in on_the_way
    for file in ("log.py", "policies/autoscaling.py", "resources/lease.py", "resources/children.py"):
        assert f"operator/rljob_operator/{file}" in files
        assert f"operator/rljob_operator/{file}" not in on_the_way
