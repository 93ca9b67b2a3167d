"""Commits of a job without a model: real files, reports and pruning.

As a program, `committing.py DIR KEEP [--asynchronous]`, it makes two commits and is killed by SIGKILL when the first
file of the old one is to be removed.
"""

import argparse
import copy
import os
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rljob_api.v1alpha1.job import RLJob
from rljob_trainer.atomic_files import fsync_file
from rljob_trainer.checkpoint.background import mark_written
from rljob_trainer.checkpoint.files import FileEntry, hash_file
from rljob_trainer.checkpoint.loop_state import LoopState
from rljob_trainer.cluster.progress import ProgressReporter, Sink, file_sink
from rljob_trainer.metrics.display import QuietDisplay
from rljob_trainer.orchestrator.checkpointer import Commits
from rljob_trainer.orchestrator.job_directory import Incarnation
from rljob_trainer.orchestrator.recorder import Recorder

INCARNATION = "0001-aaaaaaaa"
MANIFEST: dict[str, Any] = {
    "apiVersion": "rljob.io/v1alpha1",
    "kind": "RLJob",
    "metadata": {"name": "tiny"},
    "spec": {
        "model": {"path": "tiny"},
        "data": {"train": {"path": "train.jsonl"}},
        "reward": {"functions": [{"name": "em"}]},
        "rollout": {"numRollout": 4, "batchSize": 3, "nSamplesPerPrompt": 4},
    },
}


class Shards:
    """A rank that has one file to save."""

    size = 1

    def save(self, directory: Path) -> list[FileEntry]:
        path = directory / "model.bin"
        path.write_bytes(b"weights" * 100)
        fsync_file(path)
        return [FileEntry(path.name, path.stat().st_size, hash_file(path))]

    def begin_save(self, directory: Path) -> None:
        mark_written(directory, 0, self.save(directory))


class Committing:
    """A run that does nothing but commit."""

    def __init__(
        self,
        job_dir: Path,
        sinks: list[Sink],
        *,
        keep: int = 1,
        asynchronous: bool = False,
        allowed: Callable[[], bool] = lambda: True,
    ) -> None:
        manifest = copy.deepcopy(MANIFEST)
        manifest["spec"]["checkpoint"] = {"keep": keep, "asynchronous": asynchronous}
        job = RLJob.model_validate(manifest)
        incarnation = Incarnation(job_dir, INCARNATION, local=True)
        self.progress = ProgressReporter({"attempt": 1, "lastCommit": None}, sinks, interval=0.05)
        recorder = Recorder(incarnation.directory, "tiny", 100, self.progress, QuietDisplay())
        self.commits = Commits(
            job,
            incarnation,
            Shards(),  # type: ignore[arg-type]
            durable=lambda state, commit: recorder.committed(state, commit.name),
            made=lambda state, commit: None,
            allowed=allowed,
            tick=lambda: None,
            in_use=recorder.reported_commits,
        )

    def commit(self, step: int) -> None:
        self.commits.commit(LoopState(stage="RL", step=step, rollout=step))

    def close(self) -> None:
        self.commits.close()
        self.progress.close(limit=0.0)


def killed_while_removing(arguments: argparse.Namespace) -> None:
    run = Committing(
        arguments.directory,
        [file_sink(arguments.directory / "progress.json")],
        keep=arguments.keep,
        asynchronous=arguments.asynchronous,
    )
    run.commit(1)
    run.commits.wait()
    shutil.rmtree = lambda *args, **options: os.kill(os.getpid(), signal.SIGKILL)  # type: ignore[assignment]
    run.commit(2)
    run.commits.wait()


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("directory", type=Path)
    parser.add_argument("keep", type=int)
    parser.add_argument("--asynchronous", action="store_true")
    killed_while_removing(parser.parse_args())
    sys.exit(0)
