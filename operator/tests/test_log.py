"""The operator's own log lines say which job, and which attempt of it, they are about."""

import asyncio
import io
import json
import logging

import kopf
import pytest
from kopf._core.actions.loggers import LocalObjectLogger
from prometheus_client import CollectorRegistry
from rljob_operator import log
from rljob_operator.controller.controller import CANARY, Controller
from rljob_operator.kube.client import ApiError
from rljob_operator.metrics import Metrics
from rljob_operator.settings import Settings

from tests.test_lifecycle import start


class Lines:
    """What the operator logs while the test runs, as a log collector reads it."""

    def __init__(self) -> None:
        self._text = io.StringIO()
        self.handler = logging.StreamHandler(self._text)
        self.handler.setFormatter(log.JsonFormatter())

    def __iter__(self):
        return (json.loads(line) for line in self._text.getvalue().splitlines())

    def saying(self, text: str) -> list[dict]:
        """Those with `text` in their message."""
        return [line for line in self if text in line["message"]]


@pytest.fixture
def lines():
    found, root = Lines(), logging.getLogger()
    level = root.level
    root.addHandler(found.handler)
    root.setLevel(logging.INFO)
    log.about(None)
    yield found
    log.about(None)
    root.removeHandler(found.handler)
    root.setLevel(level)


def test_a_line_about_no_job_names_none(lines):
    logging.getLogger("rljob_operator.main").info("starting: %s", "x")
    (line,) = lines
    assert line.pop("time").endswith("+00:00")
    assert line == {"level": "info", "logger": "rljob_operator.main", "message": "starting: x"}


def test_kopfs_lines_name_the_object_that_kopf_speaks_of(lines):
    body = kopf.Body({"kind": "RLJob", "metadata": {"namespace": "team", "name": "demo", "uid": "u"}})
    log.about("other/job", 3)
    LocalObjectLogger(body=body, settings=kopf.OperatorSettings()).warning("Handler failed")
    (line,) = lines
    assert line["job"] == "team/demo"
    assert "attempt" not in line, "kopf knows none, and another job's is not its"


def test_an_exception_is_kept_with_the_job(lines):
    log.about("team/demo", 2)
    try:
        raise ValueError("broken")
    except ValueError:
        logging.getLogger("rljob_operator.x").exception("could not")
    (line,) = lines
    assert (line["job"], line["attempt"], line["level"]) == ("team/demo", 2, "error")
    assert line["exception"].endswith("ValueError: broken")


async def test_what_happens_to_a_job_is_logged_with_job_and_attempt(make_world, manifest, lines):
    world = make_world(manifest())
    await start(world)
    assert {line["job"] for line in lines} == {"team/demo"}
    begun = lines.saying("AttemptStarted")
    assert [line["attempt"] for line in begun] == [1], "the line that tells of the attempt has it already"
    world.report(state="Failed", exitCode=1, message="x")
    await world.settle()
    world.collect()
    world.later(10)
    await world.settle()
    assert [line["attempt"] for line in lines.saying("AttemptStarted")] == [1, 2]


async def test_a_job_that_has_had_no_attempt_is_logged_without_one(make_world, manifest, lines):
    world = make_world(manifest(trainer={"backend": "fsdp", "parallelism": {"tensor": 2}, "replicas": 2}))
    await world.settle()
    said = lines.saying("InvalidSpec")
    assert [(line["job"], line.get("attempt")) for line in said] == [("team/demo", None)]


async def test_a_report_that_cannot_be_read_is_logged_with_the_attempt(make_world, manifest, lines):
    world = make_world(manifest())
    await start(world)
    world.get("ConfigMap", "demo-progress")["data"]["progress.json"] = "{"
    await world.settle()
    said = lines.saying("progress.json cannot be read")
    assert said
    assert {(line["job"], line["attempt"]) for line in said} == {("team/demo", 1)}


async def test_a_look_that_failed_is_logged_with_the_job_and_the_next_key_is_not_taken_for_it(
    make_world, manifest, lines, monkeypatch
):
    world = make_world(manifest())
    await start(world)
    get = world.kube.get
    failed = asyncio.Event()

    async def refuse(kind, namespace, name):
        if kind.kind != "RLJob" or failed.is_set():
            return await get(kind, namespace, name)
        failed.set()
        raise ApiError("get", 403, "forbidden")

    monkeypatch.setattr(world.kube, "get", refuse)
    log.about(None)  # else the worker would have it from this test, in whose context the job was started
    # One worker, so that what a key leaves behind is seen by the next.
    controller = Controller(world.kube, Settings(workers=1, resync_seconds=3600.0), Metrics(CollectorRegistry()))
    beat = controller.canary.beat

    def beat_and_say() -> None:
        logging.getLogger("rljob_operator.canary").info("canary")
        beat()

    monkeypatch.setattr(controller.canary, "beat", beat_and_say)
    controller.synced.set()
    async with controller.running(), asyncio.timeout(10):
        while not lines.saying("forbidden"):  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        said = len(lines.saying("canary"))
        controller.queue.forget(CANARY)
        controller.queue.add(CANARY)
        while len(lines.saying("canary")) == said:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    (line,) = lines.saying("forbidden")
    assert (line["level"], line["job"]) == ("warning", "team/demo")
    assert "job" not in lines.saying("canary")[-1]
