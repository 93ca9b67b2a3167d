"""The wrong environment is a user's mistake, named, and no attempt is made again."""

import time

import pytest
from rljob_api.contract.exit_codes import ExitCode
from rljob_api.errors import missing_package
from rljob_trainer import driver
from rljob_trainer.cluster import progress
from rljob_trainer.orchestrator.stop import StopFlag


def test_a_package_that_the_driver_lacks_is_named_and_not_tried_again() -> None:
    def run() -> None:
        import no_such_package_at_all  # noqa: F401

    outcome = driver._outcome(run, StopFlag())
    assert (outcome.code, outcome.reason) == (ExitCode.USER_ERROR, "UserError")
    assert "the driver needs the Python package 'no_such_package_at_all'" in outcome.message
    assert "spec.images" in outcome.message


def test_one_that_a_rank_lacks_is_named_with_the_rank() -> None:
    text = str(missing_package(ModuleNotFoundError("No module named 'x'", name="x"), "rank 1"))
    assert text.startswith("rank 1 needs the Python package 'x'")


def test_a_report_is_written_although_nothing_changes(monkeypatch: pytest.MonkeyPatch) -> None:

    monkeypatch.setattr(progress, "HEARTBEAT_SECONDS", 0.1)
    written: list[str] = []
    reporter = progress.ProgressReporter({"step": 3}, [written.append], interval=0.02)
    deadline = time.monotonic() + 60
    while len(written) < 3:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    reporter.close()
