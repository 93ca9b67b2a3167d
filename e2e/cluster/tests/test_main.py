from __future__ import annotations

import json
from pathlib import Path

import pytest

from e2e.cluster import __main__ as program


@pytest.fixture(autouse=True)
def _no_cluster(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("RLJOB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("RLJOB_CLUSTER_STATE", str(tmp_path / "state"))


@pytest.mark.parametrize("command", [["kubeconfig"], ["env"], ["volumes"], ["load-image", "x.tar"]])
def test_what_needs_a_cluster_says_so(command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert program.main(command) == 1
    assert "no cluster is up" in capsys.readouterr().err


def test_status_without_a_cluster(capsys: pytest.CaptureFixture[str]) -> None:
    assert program.main(["status"]) == 3
    status = json.loads(capsys.readouterr().out)
    assert status["mode"] is None
    assert status["daemons"] == {}


def test_an_unknown_command_is_refused() -> None:
    with pytest.raises(SystemExit):
        program.main(["sideways"])
