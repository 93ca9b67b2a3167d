"""`rljob run` from end to end: processes started and ended, hooks delivered, mistakes in one sentence."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from rljob_api.errors import UserError
from rljob_api.manifest.load import load
from rljob_trainer.job_paths import check_data_files
from rljob_trainer.local.run import run_local

from .conftest import TinyRun, end_session

HOOKS = Path(__file__).resolve().parents[3] / "examples/custom-hooks.yaml"


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_custom_hooks_travel_in_the_manifest(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    job = load(HOOKS)
    assert run_local(job, tmp_path, quiet=True) == 0
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert (summary["steps"], summary["state"]) == (4, "Succeeded")
    (completions,) = tmp_path.glob("attempts/*/completions.jsonl")
    for record in map(json.loads, completions.read_text().splitlines()):
        assert record["status"] == "completed"
        assert set(record["reward_parts"]) == {"hooks", "hooks/variety", "hooks/second_try"}
        assert 0 < sum(record["loss_mask"]) < len(record["loss_mask"])  # the hint is masked, the rest is not
        assert record["info"]["turns"] == 2
    # Once more: nothing is left to do.
    assert run_local(job, tmp_path) == 0
    assert "done already" in capsys.readouterr().err
    assert len(list((tmp_path / "attempts").iterdir())) == 1


def test_a_job_that_another_version_has_finished_is_not_run_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    job = load(HOOKS)
    (tmp_path / "rljob.json").write_text(json.dumps(job.to_manifest(), indent=1))  # every default spelt out, no version
    (tmp_path / "summary.json").write_text(json.dumps({"state": "Succeeded"}))
    assert run_local(job, tmp_path) == 0
    assert "done already" in capsys.readouterr().err


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_interrupted_runs_commit_and_leave_no_process(tiny: TinyRun) -> None:
    path = tiny.directory / "job.json.in"
    path.write_text(json.dumps(tiny.manifest))
    program = (
        "import sys; from pathlib import Path; from rljob_api.manifest.load import load; "
        "from rljob_trainer.local.run import run_local; sys.exit(run_local(load(sys.argv[1]), Path(sys.argv[2])))"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", program, str(path), str(tiny.directory)],
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip
    try:
        tiny.attempts = 1
        deadline = time.monotonic() + 600
        while not tiny.records("sft"):
            assert process.poll() is None, process.communicate()[1]
            assert time.monotonic() < deadline
            time.sleep(0.01)
        started = psutil.Process(process.pid).children(recursive=True)
        assert started
        os.kill(process.pid, signal.SIGINT)
        _, stderr = process.communicate(timeout=600)
    finally:
        end_session(process)
    assert process.returncode == 4, stderr
    assert "Traceback" not in stderr
    assert tiny.last_step() >= 1
    _, alive = psutil.wait_procs(started, timeout=60)
    assert not [child for child in alive if child.is_running() and child.status() != psutil.STATUS_ZOMBIE]


def test_two_runs_in_one_directory_do_not_meet(tiny: TinyRun) -> None:
    import fcntl

    with (tiny.directory / ".lock").open("a+") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        held.write("4711")
        held.flush()
        with pytest.raises(UserError, match="process 4711"):
            run_local(tiny.job(), tiny.directory)


def test_code_of_a_cluster_needs_a_folder_here(tiny: TinyRun) -> None:
    tiny.manifest["spec"]["code"] = {"configMap": {"name": "hooks"}}
    with pytest.raises(UserError, match="only a cluster has"):
        run_local(tiny.job(), tiny.directory)


RETRIEVER = {"corpus": "world/corpus.jsonl", "index": {"path": "world/index.faiss"},
             "encoder": {"type": "hashed", "dimension": 32}}  # fmt: skip


@pytest.mark.parametrize(
    "field", ["data.train.path", "evaluation.datasets[0].path", "sft.dataset.path"], ids=lambda field: field
)
def test_a_missing_file_is_told_before_the_index_is_built(field: str, tiny: TinyRun) -> None:
    spec = tiny.manifest["spec"]
    spec["retriever"] = RETRIEVER
    data = {"data": spec["data"]["train"], "evaluation": spec["evaluation"]["datasets"][0],
            "sft": spec["sft"]["dataset"]}[field.split(".")[0]]  # fmt: skip
    data["path"] = "world/missing.jsonl"
    with pytest.raises(UserError, match=rf"^spec\.{re.escape(field)}: world/missing\.jsonl: .* does not exist"):
        run_local(tiny.job(), tiny.directory)
    assert not (tiny.directory / "world/index.faiss").exists()
    assert not (tiny.directory / "logs").exists()


def test_what_is_not_read_need_not_be_there(tiny: TinyRun) -> None:
    check_data_files(tiny.job().spec, tiny.directory)
    spec = tiny.manifest["spec"]
    spec["sft"]["dataset"]["path"] = "world/gone.jsonl"
    check_data_files(tiny.job().spec, tiny.directory, sft_done=True)
    with pytest.raises(UserError, match=r"^spec\.sft\.dataset\.path"):
        check_data_files(tiny.job().spec, tiny.directory)
    spec["sft"]["dataset"]["path"] = "hf://somebody/something"
    check_data_files(tiny.job().spec, tiny.directory)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"data": {"train": {"path": "world/missing.jsonl"}}}, "spec.data.train.path: world/missing.jsonl"),
        ({"data": {"train": {"path": "world/train.jsonl", "labelKey": "answers"}}}, "no column 'answers'"),
        ({"model": {"tokenizerPath": "nowhere", "randomInit": {}, "dtype": "float32"}}, "spec.model.tokenizerPath"),
        (
            {"reward": {"functions": [{"name": "custom", "function": "no_such_module:reward"}]}},
            "spec.reward.functions[0].function: there is no module 'no_such_module'",
        ),
    ],
    ids=["missing file", "unknown column", "no tokenizer", "wrong import path"],
)
def test_mistakes_are_one_sentence_and_exit_code_2(change: dict[str, object], words: str, tiny: TinyRun) -> None:
    tiny.manifest["spec"] |= change
    ended = tiny.run()
    assert ended.code == 2, ended.stderr
    assert words in ended.stderr
    assert "Traceback" not in ended.stderr
    assert len(ended.stderr.strip().splitlines()) <= 2  # the sentence and a hint
    assert tiny.progress()["exitCode"] == 2
    assert words in tiny.progress()["message"]


@pytest.mark.slow
def test_a_damaged_commit_that_was_asked_for_is_not_replaced_by_another(tiny: TinyRun) -> None:
    ended = tiny.run("--resume-from", "0001-aaaaaaaa/commits/step-000003")
    assert ended.code == 1
    assert "0001-aaaaaaaa/commits/step-000003 is not in" in ended.stderr
