"""What the driver reports of a rollout, and by which the operator chooses the number of engines."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from rljob.types import Sample
from rljob_trainer.checkpoint.loop_state import LoopState
from rljob_trainer.cluster.progress import ProgressReporter
from rljob_trainer.metrics.display import QuietDisplay
from rljob_trainer.orchestrator.recorder import Recorder
from rljob_trainer.rollout.samples import staleness_of


@pytest.fixture
def recorder(tmp_path: Path) -> Iterator[Recorder]:
    made = Recorder(tmp_path, "demo", 10, ProgressReporter({}, []), QuietDisplay())
    yield made
    made.close()
    made.progress.close()


def test_the_report_has_the_trainers_wait_and_the_oldest_samples_age(recorder: Recorder) -> None:
    # Tokens of versions 3 to 5, an observation among them, trained at version 5.
    samples = [Sample("q", [1], policy_versions=versions) for versions in ([5, -1, 5], [3, 4])]
    seconds = {"generate": 6.0, "train": 1.5, "sync": 0.5, "total": 8.0}
    recorder.rollout(LoopState("RL", step=6, rollout=6), 10, staleness_of(samples, 5), seconds)
    report = recorder.progress.snapshot()
    assert (report["trainerWait"], report["stalenessMax"]) == (0.75, 2.0)

    recorder.rollout(LoopState("RL", step=7, rollout=7), 10, {"staleness_max": 0.0}, {"generate": 0.0, "total": 8.0})
    report = recorder.progress.snapshot()
    assert (report["trainerWait"], report["stalenessMax"]) == (0.0, 0.0), "nothing of the rollout before stays"
