"""The preparation step: once, whole, and with its errors as sentences."""

import json
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest
from rljob_api.errors import UserError
from rljob_api.v1alpha1.data import PrepareSpec
from rljob_trainer.file_lock import exclusive
from rljob_trainer.prepare import MARKER, is_prepared, prepare

MODULE = """
import os, pathlib, time

def write(directory, text="x", fail=False, seconds=0.0, die=False):
    path = pathlib.Path(directory)
    with (path / "calls").open("a") as file:
        file.write("called\\n")
    time.sleep(seconds)
    if die:
        os._exit(7)
    if fail:
        raise RuntimeError("the disk is too small")
    (path / "data.txt").write_text(text)
"""


@pytest.fixture
def job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "prepare_hook.py").write_text(textwrap.dedent(MODULE), encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    return tmp_path / "job"


def spec(function: str = "prepare_hook:write", timeout: int = 60, **arguments: Any) -> PrepareSpec:
    return PrepareSpec(function=function, args=arguments, timeout_seconds=timeout)


def calls(job: Path) -> int:
    return (job / "calls").read_text().count("called")


def test_it_runs_once(job: Path) -> None:
    assert prepare(spec(text="a"), job)
    assert not prepare(spec(text="a"), job)
    assert calls(job) == 1
    assert (job / "data.txt").read_text() == "a"
    assert json.loads((job / MARKER).read_text())["function"] == "prepare_hook:write"


def test_other_arguments_run_it_again_unless_something_was_trained_on_the_old(job: Path) -> None:
    prepare(spec(text="a"), job)
    assert prepare(spec(text="b"), job)
    assert (job / "data.txt").read_text() == "b"
    commit = job / "attempts/0001-aa/commits/step-000001"
    commit.mkdir(parents=True)
    (commit / "manifest.json").write_text("{}")
    assert not prepare(spec(text="b"), job)
    with pytest.raises(UserError, match="holds commits that were trained on data prepared otherwise"):
        prepare(spec(text="c"), job)
    assert (job / "data.txt").read_text() == "b"


def test_a_failure_is_a_sentence_and_leaves_no_marker(job: Path) -> None:
    with pytest.raises(UserError, match="prepare_hook:write failed: RuntimeError: the disk is too small"):
        prepare(spec(fail=True), job)
    assert not (job / MARKER).exists()
    with pytest.raises(UserError, match=r"prepare.args: prepare_hook:write: .*unexpected keyword argument 'colour'"):
        prepare(spec(colour="red"), job)
    with pytest.raises(UserError, match=r"spec.data.prepare.function: .*'nothing'"):
        prepare(spec("prepare_hook:nothing"), job)
    with pytest.raises(UserError, match=r"the process of prepare_hook:write died \(exit code 7\)"):
        prepare(spec(die=True), job)
    assert prepare(spec(), job)


def test_it_is_ended_when_it_takes_too_long(job: Path) -> None:
    with pytest.raises(UserError, match="took longer than timeoutSeconds = 3"):
        prepare(spec(timeout=3, seconds=600.0), job)
    assert not is_prepared(spec(timeout=3, seconds=600.0), job)


def test_a_damaged_marker_means_not_prepared(job: Path) -> None:
    prepare(spec(), job)
    (job / MARKER).write_text("{")
    assert prepare(spec(), job)
    assert calls(job) == 2


def test_two_pods_at_once_run_it_once(job: Path, tmp_path: Path) -> None:
    manifest = {
        "apiVersion": "rljob.io/v1alpha1",
        "kind": "RLJob",
        "metadata": {"name": "p"},
        "spec": {
            "model": {"path": "unused"},
            "data": {"prepare": {"function": "prepare_hook:write", "args": {"seconds": 1.0}}},
        },
    }
    (tmp_path / "job.json").write_text(json.dumps(manifest))
    command = [sys.executable, "-m", "rljob_trainer.prepare", "--job", str(tmp_path / "job.json"), "--dir", str(job)]
    pods = [subprocess.Popen(command) for _ in range(3)]
    assert [pod.wait(120) for pod in pods] == [0, 0, 0]
    assert calls(job) == 1
    manifest["spec"]["data"]["prepare"]["function"] = "no_such_module:f"  # type: ignore[index]
    (tmp_path / "job.json").write_text(json.dumps(manifest))
    failed = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert failed.returncode == 2
    assert "error: spec.data.prepare.function: there is no module 'no_such_module'" in failed.stderr
    assert "Traceback" not in failed.stderr


def test_a_lock_that_is_never_released_is_named(tmp_path: Path) -> None:
    def take() -> None:
        with exclusive(tmp_path / "lock", 0.2):
            pass

    with exclusive(tmp_path / "lock", 1.0), pytest.raises(UserError, match=r"lock is held by another process"):
        take()
    take()
