"""A job so small that a whole run takes seconds: a tiny world, a one-layer model, single-turn answers."""

import copy
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from rljob_api.v1alpha1.job import RLJob
from rljob_trainer.checkpoint import latest_commit
from rljob_trainer.local import run as local
from rljob_trainer.quickstart.world import prepare

from trainer.tests.orchestrator import driver_process
from trainer.tests.warm import COLD, WarmProcess

Driver = subprocess.Popen[str] | WarmProcess
WORLD = {
    "entities": 60,
    "heldOutEntities": 20,
    "syllables": 12,
    "trainQuestions": 40,
    "heldOutQuestions": 6,
    "demonstrations": 40,
}
MANIFEST: dict[str, Any] = {
    "apiVersion": "rljob.io/v1alpha1",
    "kind": "RLJob",
    "metadata": {"name": "tiny"},
    "spec": {
        "seed": 5,
        "model": {
            "randomInit": {
                "hiddenSize": 16,
                "intermediateSize": 32,
                "numHiddenLayers": 1,
                "numAttentionHeads": 2,
                "numKeyValueHeads": 2,
            },
            "tokenizerPath": "world/tokenizer",
            "dtype": "float32",
        },
        "data": {
            "train": {
                "path": "world/train.jsonl",
                "labelKey": "reward_model.ground_truth",
                "sourceKey": "data_source",
                "maxPromptLength": 32,
            }
        },
        "sft": {
            "dataset": {"path": "world/demonstrations.jsonl", "format": "segments"},
            "batchSize": 8,
            "numSteps": 5,
            "maxSequenceLength": 160,
            "optimizer": {"lr": 0.01},
        },
        "algorithm": {"kl": {"lossCoef": 0.01}},
        "rollout": {
            "engine": "torch",
            "engineArgs": {"slots": 8},
            "numRollout": 4,
            "batchSize": 3,
            "nSamplesPerPrompt": 4,
            "sampling": {"temperature": 1.0, "maxResponseLength": 12},
            "maxContextLength": 64,
        },
        "reward": {"functions": [{"name": "length", "args": {"maxLength": 12, "buffer": 12}}]},
        "optimizer": {"lr": 0.005, "weightDecay": 0.0},
        "trainer": {"backend": "fsdp", "microBatchSize": 12},
        "evaluation": {
            "datasets": [
                {
                    "name": "held-out",
                    "path": "world/held_out.jsonl",
                    "labelKey": "reward_model.ground_truth",
                    "sourceKey": "data_source",
                    "maxPromptLength": 32,
                }
            ],
            "interval": 2,
            "atStart": True,
            "sampling": {"temperature": 0.0, "maxResponseLength": 12},
        },
        "checkpoint": {"saveInterval": 1, "sftSaveInterval": 2},
        "tracking": {"metricsPort": 0, "logCompletions": 2},
    },
}


@dataclass
class Ended:
    """A driver process that ended."""

    code: int
    stderr: str


@dataclass
class TinyRun:
    """Runs the driver of a tiny job in a directory of its own."""

    directory: Path
    manifest: dict[str, Any] = field(default_factory=lambda: copy.deepcopy(MANIFEST))
    attempts: int = 0

    def job(self) -> RLJob:
        return RLJob.model_validate(self.manifest)

    def start(self, *options: str, cold: bool = COLD, env: Mapping[str, str] | None = None) -> Driver:
        """Start the next attempt in a session of its own. `cold`: by `python -m`, as `rljob run` does; `env`: further
        variables of its environment."""
        self.attempts += 1
        path = self.directory / "rljob.json"
        path.write_text(json.dumps(self.manifest))
        arguments = ["--job", str(path), "--dir", str(self.directory), "--attempt", str(self.attempts)]
        arguments += ["--incarnation", f"{self.attempts:04d}-{self.attempts:08x}", "--local", "--quiet", *options]
        environment = os.environ | {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"} | dict(env or {})
        if not cold:
            output = self.directory / f"driver-{self.attempts}"
            return WarmProcess(driver_process.main, arguments, env=environment, output=output)
        command = [sys.executable, "-m", "rljob_trainer.driver", *arguments]
        return subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True, start_new_session=True)

    def run(self, *options: str, cold: bool = COLD, env: Mapping[str, str] | None = None) -> Ended:
        """Run an attempt to its end; see `start`."""
        process = self.start(*options, cold=cold, env=env)
        try:
            _, stderr = process.communicate(timeout=600)
        finally:
            end_session(process)
        return Ended(process.returncode, stderr)

    def run_until(self, moment: Callable[["TinyRun"], bool], number: signal.Signals) -> Ended:
        """Start an attempt, send `number` to the driver once `moment` is true, and wait for its end.

        Fails the test when the attempt ends before the moment.
        """
        process = self.start()
        try:
            deadline = time.monotonic() + 600
            while not moment(self):
                if process.poll() is not None:
                    pytest.fail(f"ended with {process.returncode} before the moment: {process.communicate()[1]}")
                if time.monotonic() > deadline:
                    pytest.fail("the moment did not come")
                time.sleep(0.002)
            process.send_signal(number)
            _, stderr = process.communicate(timeout=600)
        finally:
            end_session(process)
        return Ended(process.returncode, stderr)

    def records(self, kind: str) -> list[dict[str, Any]]:
        """Lines of one kind in the current attempt's metrics.jsonl."""
        paths = self.directory.glob(f"attempts/{self.attempts:04d}-*/metrics.jsonl")
        lines = [line for path in paths for line in path.read_text().splitlines() if line.endswith("}")]
        return [record for record in map(json.loads, lines) if record["kind"] == kind]

    def writing_commit(self) -> bool:
        """Whether the current attempt is writing a commit right now."""
        return any(self.directory.glob(f"attempts/{self.attempts:04d}-*/commits/.tmp-*"))

    def summary(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((self.directory / "summary.json").read_text())
        return found

    def progress(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((self.directory / "progress.json").read_text())
        return found

    def last_step(self) -> int:
        commit = latest_commit(self.directory).commit
        return -1 if commit is None else commit.step


def end_session(process: Driver) -> None:
    """Kill what a driver may have left: its Ray lives in its session."""
    process.kill()  # also one that has not come to lead its session yet
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        return


@pytest.fixture(scope="session")
def tiny_world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("world")
    prepare(directory, seed=1, **WORLD)
    return directory / "world"


@pytest.fixture
def tiny(tiny_world: Path, tmp_path: Path) -> TinyRun:
    (tmp_path / "world").symlink_to(tiny_world)
    return TinyRun(tmp_path)


@pytest.fixture
def warm_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    """The driver of `rljob run` is a copy of a warm process."""
    monkeypatch.setattr(local, "Child", driver_process.WarmChild)


@pytest.fixture(scope="session")
def undisturbed(tiny_world: Path, tmp_path_factory: pytest.TempPathFactory) -> TinyRun:
    """A run of the tiny job that nobody disturbed, started as `rljob run` starts it."""
    directory = tmp_path_factory.mktemp("undisturbed")
    (directory / "world").symlink_to(tiny_world)
    run = TinyRun(directory)
    ended = run.run(cold=True)
    assert ended.code == 0, ended.stderr
    return run
