"""The driver's output is copied to where `kubectl logs` reads, and stays where it was."""

import os
import subprocess
import sys
from pathlib import Path

SCRIPT = """
import sys
from rljob_trainer.logs import copy_output_to_pod_log
copy_output_to_pod_log()
print("to output")
print("to error", file=sys.stderr)
"""


def run(path: str) -> subprocess.CompletedProcess[str]:
    env = os.environ | {"RLJOB_POD_LOG": path}
    return subprocess.run(
        [sys.executable, "-c", SCRIPT], env=env, capture_output=True, text=True, timeout=60, check=True
    )


def test_output_is_in_both_places(tmp_path: Path) -> None:
    done = run(str(tmp_path / "pod.log"))
    assert (done.stdout, done.stderr) == ("to output\n", "to error\n")
    assert (tmp_path / "pod.log").read_text() == "to output\nto error\n"


def test_a_pod_log_that_cannot_be_written_stops_nothing(tmp_path: Path) -> None:
    done = run(str(tmp_path / "no" / "pod.log"))
    assert done.stdout == "to output\n"
