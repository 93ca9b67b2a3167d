"""Trackers: what is sent can be read back from the real files, and a broken one costs nothing."""

import sys
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from rljob_api.errors import UserError
from rljob_api.v1alpha1.tracking import TrackingSpec
from rljob_trainer.metrics import tracking as module
from rljob_trainer.metrics.trackers import Completion, RunFacts
from rljob_trainer.metrics.tracking import Tracking, check_tracking, known_runs, make_trackers

ROW = Completion(3, 0, 1, "What?", "That <b>.", "That", "completed", 1.0, {"em": 1.0}, 0.5, [2, 3])


def spec(**fields: Any) -> TrackingSpec:
    return TrackingSpec.model_validate(fields)


def facts(job_dir: Path, attempt: int, resumed: int | None = None) -> RunFacts:
    directory = job_dir / "attempts" / f"{attempt:04d}-abcdef01"
    known = known_runs(job_dir)
    directory.mkdir(parents=True)
    return RunFacts("tiny", directory.name, job_dir, directory, {"seed": 5, "optimizer.lr": 0.1}, resumed, known)


def attempt(job_dir: Path, config: TrackingSpec, number: int, steps: Sequence[int], resumed: int | None = None) -> None:
    """An attempt that tells a reward at each of `steps`."""
    known = facts(job_dir, number, resumed)
    told: list[str] = []
    tracking = Tracking(make_trackers(config, known), known.directory, told.append)
    for step in steps:
        tracking.log(step, "rl", {"reward": step + number / 10, "loss": float("nan")})
    tracking.completions(steps[-1], "train", [ROW])
    tracking.log(steps[-1], "eval/held-out", {"score": 0.5, "pass@4": 0.75})
    tracking.close(succeeded=number == 2)
    assert told == []


@pytest.mark.slow
def test_tensorboard_shows_all_attempts_as_one_run(tmp_path: Path) -> None:
    event_accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    config = spec(tensorboard={})
    attempt(tmp_path, config, 1, [1, 2, 3])
    attempt(tmp_path, config, 2, [2, 3, 4], resumed=1)
    events = event_accumulator.EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [(e.step, round(e.value, 3)) for e in events.Scalars("rl/reward")] == [
        (1, 1.1),
        (2, 2.2),
        (3, 3.2),
        (4, 4.2),
    ]
    assert [e.value for e in events.Scalars("eval/held-out/pass_at_4")][-1] == 0.75
    assert "rl/loss" not in events.Tags()["scalars"]
    (text,) = events.Tensors("completions/train/0/text_summary")[-1].tensor_proto.string_val
    assert "reward 1.0, completed, policy versions 2, 3" in text.decode()


@pytest.mark.slow
def test_mlflow_keeps_one_run_over_attempts(tmp_path: Path) -> None:
    mlflow = pytest.importorskip("mlflow")
    config = spec(mlflow={"trackingUri": "file:mlruns", "experiment": "search"})
    attempt(tmp_path, config, 1, [1, 2])
    attempt(tmp_path, config, 2, [2, 3], resumed=1)
    client = mlflow.MlflowClient(tracking_uri=(tmp_path / "mlruns").as_uri())
    experiment = client.get_experiment_by_name("search")
    (run,) = client.search_runs([experiment.experiment_id])
    assert (run.info.run_name, run.info.status) == ("tiny", "FINISHED")
    assert (run.data.params["seed"], run.data.metrics["eval/held-out/pass_at_4"]) == ("5", 0.75)
    history = client.get_metric_history(run.info.run_id, "rl/reward")
    assert sorted((m.step, round(m.value, 3)) for m in history) == [(1, 1.1), (2, 2.1), (2, 2.2), (3, 3.2)]
    assert {item.path for item in client.list_artifacts(run.info.run_id, "completions")} == {
        "completions/train-00000002.json",
        "completions/train-00000003.json",
    }


def log_records(data: bytes) -> list[bytes]:
    """Records of a LevelDB log, the form of wandb's files: 7 bytes of its own, then blocks of 32 KiB, each of
    fragments (checksum 4, length 2, type 1: whole, first, middle, last)."""
    records, part, at = [], b"", 7
    while at + 7 <= len(data):
        room = 32768 - at % 32768
        if room < 7:
            at += room
            continue
        length, kind = int.from_bytes(data[at + 4 : at + 6], "little"), data[at + 6]
        if at + 7 + length > len(data):  # it is being written
            break
        part += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):
            records.append(part)
            part = b""
    return records


def whole_run(file: Path, kind: Any) -> list[Any]:
    """The records of a run's file, once the last of them is there: wandb's own process writes it, and may still do so
    when the run has been finished."""
    end = time.monotonic() + 30
    while True:
        records = [kind.FromString(data) for data in log_records(file.read_bytes())]
        if records and records[-1].WhichOneof("record_type") == "exit":
            return records
        assert time.monotonic() < end, f"{file.name} has no end"
        time.sleep(0.05)


@pytest.mark.slow
def test_wandb_offline_goes_on_with_the_same_run(tmp_path: Path) -> None:
    pytest.importorskip("wandb")
    from wandb.proto import wandb_internal_pb2

    config = spec(wandb={"project": "search", "offline": True})
    attempt(tmp_path, config, 1, [1, 2])
    attempt(tmp_path, config, 2, [2, 3], resumed=1)
    files = sorted(tmp_path.glob("attempts/*/wandb/offline-run-*/run-*.wandb"))
    assert len(files) == 2
    assert len({file.name for file in files}) == 1  # named by the run's id
    rewards, keys = [], set()
    for file in files:
        for record in whole_run(file, wandb_internal_pb2.Record):
            if record.WhichOneof("record_type") == "history":
                items = {".".join(item.nested_key) or item.key: item.value_json for item in record.history.item}
                keys |= set(items)
                if "rl/reward" in items:
                    rewards.append((int(items["step"]), round(float(items["rl/reward"]), 3)))
    assert rewards == [(1, 1.1), (2, 2.1), (2, 2.2), (3, 3.2)]
    assert "completions/train" in {key.removesuffix("._type") for key in keys} | {k.split(".")[0] for k in keys}


class Fake:
    """A tracker that does what a test wants."""

    name = "fake"

    def __init__(self, **calls: Any) -> None:
        self.calls, self.logged = calls, []  # type: ignore[var-annotated]

    def start(self) -> str | None:
        return self.calls.get("start", lambda: "run-1")()  # type: ignore[no-any-return]

    def log(self, step: int, values: Mapping[str, float]) -> None:
        self.calls.get("log", lambda: None)()
        self.logged.append((step, dict(values)))

    def completions(self, step: int, name: str, rows: Sequence[Completion]) -> None:
        return

    def close(self, succeeded: bool) -> None:
        self.logged.append(("closed", succeeded))


def fail() -> None:
    raise ConnectionError("no route to host\nmore lines")


@pytest.mark.parametrize("broken", [Fake(start=fail), Fake(log=fail)], ids=["at the start", "later"])
def test_a_tracker_that_fails_is_told_once_and_left_out(tmp_path: Path, broken: Fake) -> None:
    told: list[str] = []
    works = Fake()
    tracking = Tracking([broken, works], tmp_path, told.append)
    for step in range(5):
        tracking.log(step, "rl", {"reward": 1.0})
    tracking.close(succeeded=True)
    assert told == ["fake failed and is left out from here on: no route to host"]
    assert [entry[0] for entry in works.logged] == [0, 1, 2, 3, 4, "closed"]


def test_a_tracker_that_hangs_does_not_hold_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CLOSE_SECONDS", 0.2)
    release, told = threading.Event(), []  # type: ignore[var-annotated]
    tracking = Tracking([Fake(log=release.wait)], tmp_path, told.append)
    tracking.log(1, "rl", {"reward": 1.0})
    tracking.close(succeeded=True)
    assert "did not take everything" in told[0]
    release.set()


def test_missing_packages_and_keys_are_the_users_to_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setattr(module, "_logged_in_to_wandb", lambda: False)
    monkeypatch.setattr(module.importlib.util, "find_spec", lambda name: None if name == "mlflow" else sys)
    with pytest.raises(UserError, match=r"spec\.tracking\.mlflow: the package mlflow is not installed"):
        check_tracking(spec(mlflow={"trackingUri": "http://mlflow:5000", "experiment": "e"}))
    with pytest.raises(UserError, match=r"WANDB_API_KEY is not set"):
        check_tracking(spec(wandb={"project": "p"}))
    with pytest.raises(UserError, match=r"MY_KEY is not set"):
        check_tracking(spec(wandb={"project": "p", "apiKey": {"name": "s", "key": "k", "env": "MY_KEY"}}))
    monkeypatch.setenv("MY_KEY", "x")
    check_tracking(spec(wandb={"project": "p", "apiKey": {"name": "s", "key": "k", "env": "MY_KEY"}}))
    check_tracking(spec(wandb={"project": "p", "offline": True}, tensorboard={}))
