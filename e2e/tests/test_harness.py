"""The tests' own machinery: which cluster they touch, what they prepare, in which stages they run."""

import os
import subprocess
import sys
import threading
from importlib import util
from pathlib import Path
from types import ModuleType

import pytest

from e2e import prepare, which_cluster
from e2e.support.shared import shared

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def stages() -> ModuleType:
    """scripts/test.py as a module."""
    spec = util.spec_from_file_location("rljob_test_stages", ROOT / "scripts/test.py")
    assert spec is not None
    assert spec.loader is not None
    module = util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def test_tests_find_no_cluster_by_themselves() -> None:
    assert os.environ["KUBECONFIG"] == str(which_cluster.NO_CLUSTER)
    done = subprocess.run(
        [sys.executable, "-m", "rljob_cli", "status", "-o", "json"], capture_output=True, text=True, check=False
    )
    assert done.returncode != 0
    assert "127.0.0.1:9" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_cluster_of_the_users_is_taken_only_when_named_and_confirmed(tmp_path: Path) -> None:
    theirs = tmp_path / "config"
    theirs.write_text("{}")
    assert which_cluster.given({"KUBECONFIG": str(theirs)}) is None
    with pytest.raises(which_cluster.NotConfirmedError, match="RLJOB_E2E_YES=1"):
        which_cluster.given({"RLJOB_E2E_KUBECONFIG": str(theirs)})
    with pytest.raises(which_cluster.NotConfirmedError, match="no such file"):
        which_cluster.given({"RLJOB_E2E_KUBECONFIG": str(tmp_path / "absent"), "RLJOB_E2E_YES": "1"})
    assert which_cluster.given({"RLJOB_E2E_KUBECONFIG": str(theirs), "RLJOB_E2E_YES": "1"}) == str(theirs)


def test_pytest_alone_does_not_take_an_unconfirmed_cluster(tmp_path: Path) -> None:
    env = os.environ | {"RLJOB_E2E_KUBECONFIG": str(tmp_path / "config")}
    env.pop("RLJOB_E2E_YES", None)
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        "-m",
        "cluster",
        "e2e/faults/test_deep.py",
    ]
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 4, done.stdout + done.stderr
    assert "RLJOB_E2E_YES=1" in done.stdout + done.stderr


def test_make_e2e_asks_before_it_touches_a_named_cluster(tmp_path: Path) -> None:
    tools = tmp_path / "bin"
    tools.mkdir()
    (tools / "kubectl").write_text(
        "#!/bin/sh\ncase $* in *current-context*) echo prod;; *) echo https://prod:6443;; esac\n"
    )
    (tools / "kubectl").chmod(0o755)
    env = os.environ | {"RLJOB_E2E_KUBECONFIG": str(tmp_path / "config"), "PATH": f"{tools}:{os.environ['PATH']}"}
    env.pop("RLJOB_E2E_YES", None)
    done = subprocess.run(
        [ROOT / "scripts/e2e.sh", "--collect-only"],
        env=env, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 1
    assert "context prod, server https://prod:6443" in done.stdout
    assert "RLJOB_E2E_YES=1" in done.stderr


def test_stages_see_no_cluster_of_the_users(stages: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KUBECONFIG", "/home/user/.kube/prod")
    monkeypatch.setenv("RLJOB_E2E_KUBECONFIG", "/home/user/.kube/prod")
    monkeypatch.setenv("RLJOB_E2E_YES", "1")
    for stage in (*stages.STAGES, *stages.NIGHTLY):
        seen = stages.environment(stage)
        assert seen["KUBECONFIG"] == str(which_cluster.NO_CLUSTER)
        assert not {which_cluster.GIVEN, which_cluster.CONFIRMED} & seen.keys()


def test_stages_at_the_same_time_have_clusters_of_their_own(stages: ModuleType) -> None:
    by_name = {stage.name: stage for stage in stages.STAGES}
    indices = [{by_name[name].cluster for name in lane} for lane in stages.SIDE_BY_SIDE]
    assert all(None not in lane for lane in indices)
    assert len(set.union(*indices)) == sum(map(len, indices))


def test_a_part_is_chosen_by_its_name(stages: ModuleType) -> None:
    assert [stage.name for stage in stages.chosen("")] == [stage.name for stage in stages.STAGES]
    assert [stage.name for stage in stages.chosen("helm,quick")] == ["quick", "helm"]
    with pytest.raises(SystemExit, match="there is no part qick; there are quick, slow, faults"):
        stages.chosen("qick")


def test_every_part_says_what_it_needs(stages: ModuleType) -> None:
    assert set(prepare.NEEDS) == set(stages.PARTS)
    assert prepare.needed(["quick"]) == []
    assert prepare.needed(["kueue", "faults"]) == [prepare.control_plane, prepare.helm, prepare.kueue]


def test_a_stage_that_fails_or_hangs_is_told(stages: ModuleType) -> None:
    def outcome(*commands: tuple[str, ...], limit: float = 30) -> str:
        said: str = stages.run(stages.Stage("x", "a stage", commands, limit))
        return said

    assert outcome(("true",), ("true",)) == "passed"
    assert outcome(("true",), ("false",), ("sleep", "60")) == "FAILED (exit code 1): false"
    assert outcome(("sleep", "60"), limit=0.1) == "not done within 0 s"


def test_side_by_side_stages_all_report(stages: ModuleType, capfd: pytest.CaptureFixture[str]) -> None:
    def stage(name: str, *words: str) -> object:
        return stages.Stage(name, name, (words,), 30)

    report = stages.Report()
    lanes = [[stage("a", "echo", "from a"), stage("b", "false"), stage("c", "true")], [stage("d", "echo", "from d")]]
    stages.run_side_by_side(lanes, report, 0.0)
    assert {name: result for name, _, result in report.lines} == {
        "a": "passed",
        "b": "FAILED (exit code 1): false",
        "d": "passed",
    }
    assert report.failed
    printed = capfd.readouterr().out
    assert "from a" in printed
    assert "from d" in printed
    assert "total" in report.table(1.0)


def test_the_first_makes_what_is_shared_and_the_last_takes_it_away(tmp_path: Path) -> None:
    happened: list[str] = []
    inside = threading.Event()
    leave = threading.Event()

    def other() -> None:
        with shared(tmp_path, "thing", lambda: happened.append("made twice"), lambda: happened.append("taken away")):
            inside.set()
            assert leave.wait(30)

    with shared(tmp_path, "thing", lambda: happened.append("made"), lambda: happened.append("taken too early")):
        thread = threading.Thread(target=other)
        thread.start()
        assert inside.wait(30)
    assert happened == ["made"]
    leave.set()
    thread.join(30)
    assert happened == ["made", "taken away"]


def test_what_could_not_be_made_is_made_by_the_next(tmp_path: Path) -> None:
    def fail() -> None:
        raise RuntimeError("no")

    with pytest.raises(RuntimeError, match="no"), shared(tmp_path, "thing", fail, lambda: None):
        pass
    happened: list[str] = []
    with shared(tmp_path, "thing", lambda: happened.append("made"), lambda: happened.append("taken away")):
        pass
    assert happened == ["made", "taken away"]
