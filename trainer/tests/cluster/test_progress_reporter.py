"""Progress reaches its sinks, whatever the apiserver does."""

import json
import threading
from pathlib import Path

import pytest
from rljob_trainer.cluster.progress import ProgressReporter, file_sink


class Sink:
    """Keeps what it is given; fails while `broken`."""

    def __init__(self) -> None:
        self.texts: list[dict[str, object]] = []
        self.broken = False
        self.calls = 0
        self.written = threading.Event()

    def __call__(self, text: str) -> None:
        self.calls += 1
        if self.broken:
            raise ConnectionError("no route to host")
        self.texts.append(json.loads(text))
        self.written.set()


def test_the_last_word_is_written_before_close_returns(tmp_path: Path) -> None:
    path = tmp_path / "progress.json"
    reporter = ProgressReporter({"step": 0, "state": "Running"}, [file_sink(path)], interval=60.0)
    reporter.update(step=7)
    assert reporter.close(state="Succeeded", exitCode=0)
    written = json.loads(path.read_text())
    assert (written["step"], written["state"], written["exitCode"]) == (7, "Succeeded", 0)
    assert written["time"].endswith("Z")


def test_a_transition_is_written_at_once_and_other_updates_wait() -> None:
    sink = Sink()
    reporter = ProgressReporter({"step": 0}, [sink], interval=3600.0)
    for step in range(100):
        reporter.update(step=step)
    assert sink.calls == 0
    reporter.update(stage="RL", transition=True)
    assert sink.written.wait(timeout=30.0)
    assert sink.texts[-1]["stage"] == "RL"
    assert sink.texts[-1]["step"] == 99
    assert sink.calls == 1
    reporter.close()


def test_an_apiserver_that_comes_back_gets_the_final_word() -> None:
    sink = Sink()
    sink.broken = True
    reporter = ProgressReporter({"step": 0}, [sink], interval=3600.0)
    mend = threading.Timer(1.0, lambda: setattr(sink, "broken", False))
    mend.start()
    assert reporter.close(limit=60.0, state="Failed", exitCode=1)
    assert sink.texts[-1]["state"] == "Failed"


def test_an_apiserver_that_stays_away_is_given_up_on_in_time() -> None:
    sink = Sink()
    sink.broken = True
    reporter = ProgressReporter({"step": 0}, [sink], interval=3600.0)
    assert not reporter.close(limit=0.6, state="Succeeded")
    assert sink.calls >= 2


def test_numbers_that_are_no_json_become_null() -> None:
    sink = Sink()
    reporter = ProgressReporter({"reward": float("nan")}, [sink], interval=3600.0)
    assert reporter.close()
    assert sink.texts[-1]["reward"] is None


def test_a_field_that_no_reader_knows_is_refused() -> None:
    sink = Sink()
    with pytest.raises(TypeError, match=r"progress\.json has no field total_steps"):
        ProgressReporter({"total_steps": 3}, [sink])
    reporter = ProgressReporter({"step": 0}, [sink], interval=3600.0)
    with pytest.raises(TypeError, match=r"has no field rewards"):
        reporter.update(step=1, rewards=0.5)
    assert reporter.snapshot() == {"step": 0}
    reporter.close()
