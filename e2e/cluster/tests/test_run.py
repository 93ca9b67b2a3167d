"""Commands that take minutes."""

from pathlib import Path

import pytest

from e2e.cluster.run import ClusterError, run_counting


def test_a_long_command_says_how_far_it_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    slow = ["sh", "-c", "echo one >&2; echo two >&2; sleep 1.5; echo three >&2"]
    run_counting(slow, lambda lines: f"{lines} so far", env={}, cwd=tmp_path, timeout=30, every=0.5)
    assert "2 so far" in capsys.readouterr().err


def test_a_long_command_that_fails_or_hangs_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ClusterError, match=r"exit code 3\nno such module"):
        run_counting(["sh", "-c", "echo no such module >&2; exit 3"], str, env={}, cwd=tmp_path, timeout=30)
    with pytest.raises(ClusterError, match="not finished after 1 s"):
        run_counting(["sleep", "60"], str, env={}, cwd=tmp_path, timeout=1)
