"""A volume without a byte left: the driver's last word still says so, whatever else fails because of it."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[3]
DRIVER = """
import sys, types
from rljob_trainer import driver

def run_job(job, options, stop, progress, stack, *unused):
    file = open("/dev/full", "w")
    stack.callback(file.close)
    file.write("what the file still holds is written at its end once more")
    {then}

loop = types.ModuleType("rljob_trainer.orchestrator.setup")
loop.run_job = run_job
sys.modules[loop.__name__] = loop
sys.exit(driver.main(sys.argv[1:]))
"""


@pytest.mark.parametrize(
    ("then", "code", "reason"),
    [
        ("file.flush()", 1, "StorageFull"),
        ("", 1, "StorageFull"),
        ('from rljob_api.errors import UserError; raise UserError("no such column")', 2, "UserError"),
    ],
    ids=["while it runs", "at its end", "after something else"],
)
def test_the_last_word_is_written_and_names_the_first_failure(
    then: str, code: int, reason: str, tmp_path: Path
) -> None:
    job = yaml.safe_load((ROOT / "examples/quickstart.yaml").read_text())
    del job["spec"]["data"]["prepare"]  # nothing is trained here
    (tmp_path / "job.yaml").write_text(yaml.safe_dump(job))
    arguments = ["--job", tmp_path / "job.yaml", "--dir", tmp_path, "--incarnation", "0001-a", "--local"]
    done = subprocess.run(
        [sys.executable, "-c", DRIVER.replace("{then}", then), *map(str, arguments)],
        env=os.environ, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == code, done.stderr
    said = json.loads((tmp_path / "attempts/0001-a/progress.json").read_text())
    assert (said["state"], said["exitCode"], said["reason"]) == ("Failed", code, reason)
    assert ("No space left on device" in said["message"]) == (reason == "StorageFull")
