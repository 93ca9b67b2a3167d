"""Images of now and of earlier versions, by what was recorded of each; with the trainer's own packages.

See `test_other_versions`, which needs the operator's alone.
"""

import argparse
import asyncio
import importlib
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any
from unittest import mock

import jsonschema
import pytest

pytest.importorskip("torch")
pytest.importorskip("faiss")
pytest.importorskip("fastapi")

from rljob_api.contract.job_document import load_document
from rljob_api.contract.progress import Progress
from rljob_trainer.checkpoint import latest_commit
from rljob_trainer.checkpoint.loop_state import LoopState
from rljob_trainer.orchestrator.job_directory import claim
from rljob_trainer.prepare import is_prepared
from rljob_trainer.retriever.app import create_app
from rljob_trainer.retriever.build import build_index
from rljob_trainer.rollout.retriever_client import RetrieverClient

from tests.compat import record
from tests.compat.recorded import commands, each_corpus, each_job, entry_point, load


class Parsed(Exception):  # noqa: N818 - not an error
    pass


@each_job
def test_command_lines_of_older_operators_are_taken_now(path: Path) -> None:
    real = argparse.ArgumentParser.parse_args
    for line in commands(load(path)):

        def parse(parser: argparse.ArgumentParser, *_: Any, line: list[str] = line) -> None:
            real(parser, line[3:])
            raise Parsed

        with mock.patch.object(argparse.ArgumentParser, "parse_args", parse), pytest.raises(Parsed):
            importlib.import_module(f"rljob_trainer.{entry_point(line)}").main()


@each_job
def test_probes_of_older_operators_are_answered_now(path: Path) -> None:
    served = {route.path for route in create_app(mock.Mock()).routes}
    assert {probe for container in load(path)["containers"].values() for probe in container["probes"]} <= served


@each_corpus
def test_reports_of_now_are_read_by_older_operators(corpus: Path) -> None:
    schema = load(corpus / "schemas/progress.json")
    for report in record.progress().values():
        jsonschema.validate(report, schema)


def test_every_field_that_the_driver_writes_is_declared() -> None:
    for name, written in record.progress().items():
        report, unread = Progress.from_json(json.dumps(written))
        assert not unread, name
        assert report is not None
        assert report.to_fields() == written, name


# The retriever


@each_corpus
async def test_the_trainer_and_the_retriever_may_be_of_different_images(corpus: Path) -> None:
    exchange = load(corpus / "retrieve.json")
    sent: list[Any] = []

    async def post(body: Any, **_: Any) -> Any:
        sent.append(body)
        return exchange["answer"]

    async with RetrieverClient("http://retriever", topk=2, timeout=60.0, limit=asyncio.Semaphore(2)) as client:
        with mock.patch.object(client._caller, "post", post):
            found = await asyncio.gather(*(client.search(query) for query in exchange["request"]["queries"]))
    assert [len(documents) for documents in found] == [2, 2]
    (body,) = sent
    jsonschema.validate(body, load(corpus / "schemas/retrieve.json"))
    assert set(body) <= set(load(corpus / "schemas/retrieve.json")["properties"])


@each_corpus
def test_an_index_of_an_older_image_is_served_and_answers_the_same(corpus: Path, tmp_path: Path) -> None:
    directory = shutil.copytree(corpus / "trained", tmp_path / "job")
    job = load_document(directory / "rljob.json")
    before = (directory / "world/index.faiss").stat().st_mtime_ns
    assert job.spec.retriever is not None
    build_index(job.spec.retriever, str(directory))
    assert (directory / "world/index.faiss").stat().st_mtime_ns == before, "it was built again"
    now, before = record.retrieved(directory)["answer"]["result"], load(corpus / "retrieve.json")["answer"]["result"]
    assert [[hit["document"] for hit in hits] for hits in now] == [[hit["document"] for hit in hits] for hits in before]
    for hits, recorded in zip(now, before, strict=True):
        assert [hit["score"] for hit in hits] == pytest.approx([hit["score"] for hit in recorded], abs=1e-5)


# The job's directory


@each_corpus
def test_a_commit_of_an_older_image_is_found_and_its_directory_is_the_jobs_own(corpus: Path, tmp_path: Path) -> None:
    directory = shutil.copytree(corpus / "trained", tmp_path / "job")
    job = load_document(directory / "rljob.json")
    found = latest_commit(directory)
    assert found.skipped == []
    assert found.commit is not None
    state = LoopState.from_json(found.commit.loop_state())
    assert (state.stage, state.step) == ("RL", found.commit.step)
    claim(directory, job, may_resume=True)
    assert job.spec.data.prepare is not None
    assert is_prepared(job.spec.data.prepare, directory)
    # And an image of the older version still takes the directory for the job's own.
    assert load(directory / "job.json") == load(corpus / "trained/job.json")


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.timeout(1800)
@each_corpus
def test_an_attempt_goes_on_from_a_commit_of_an_older_image(corpus: Path, tmp_path: Path) -> None:
    directory = shutil.copytree(corpus / "trained", tmp_path / "job")
    before = latest_commit(directory).commit
    assert before is not None
    command = [sys.executable, "-m", "rljob_trainer.driver", "--job", str(directory / "rljob.json")]
    command += ["--dir", str(directory), "--attempt", "2", "--incarnation", "0002-89abcdef", "--local", "--quiet"]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=900, check=False)
    assert ended.returncode == 0, ended.stderr
    summary = load(directory / "summary.json")
    assert (summary["state"], summary["steps"]) == ("Succeeded", before.step + 1)
    trained = [line for line in (directory / "attempts/0002-89abcdef/metrics.jsonl").read_text().splitlines() if line]
    assert [json.loads(line)["step"] for line in trained if json.loads(line)["kind"] == "rl"] == [before.step + 1]
