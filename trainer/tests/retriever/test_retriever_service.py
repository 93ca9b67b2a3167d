"""The service as its users see it: a real process, over HTTP."""

import asyncio
import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from rljob_trainer.rollout.search_format import split_contents

START_SECONDS = 120.0


def manifest(job_dir: Path, **retriever: Any) -> Path:
    spec = {
        "corpus": "world/corpus.jsonl",
        "index": {"path": "index/service.index"},
        "encoder": {"type": "hashed", "dimension": 256},
    } | retriever
    job = {
        "apiVersion": "rljob.io/v1alpha1",
        "kind": "RLJob",
        "metadata": {"name": "service"},
        "spec": {"model": {"path": "unused"}, "retriever": spec},
    }
    path = job_dir / "job.yaml"
    path.write_text(yaml.safe_dump(job), encoding="utf-8")
    return path


def command(job: Path, job_dir: Path, *arguments: str) -> list[str]:
    return [sys.executable, "-m", "rljob_trainer.retriever", "--job", str(job), "--dir", str(job_dir), *arguments]


@contextmanager
def running(job: Path, job_dir: Path, *arguments: str) -> Iterator[tuple[str, "subprocess.Popen[bytes]"]]:
    port_file = job_dir / f"port-{time.monotonic_ns()}"
    arguments = ("--port", "0", "--port-file", str(port_file), *arguments)
    process = subprocess.Popen(command(job, job_dir, *arguments))
    try:
        deadline = time.monotonic() + START_SECONDS
        while not (port_file.exists() and ready(f"http://127.0.0.1:{port_file.read_text().strip()}")):
            assert process.poll() is None, f"ended with {process.returncode}"
            assert time.monotonic() < deadline, "not ready in time"
            time.sleep(0.05)
        yield f"http://127.0.0.1:{port_file.read_text().strip()}", process
    finally:
        process.kill()
        process.wait(10)


def ready(url: str) -> bool:
    try:
        return httpx.get(f"{url}/readyz", timeout=5).status_code == 200
    except httpx.TransportError:
        return False


@pytest.fixture(scope="module")
def service(world: Path) -> Iterator[str]:
    with running(manifest(world.parent), world.parent) as (url, _):
        yield url


def questions(world: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (world / "held_out.jsonl").read_text(encoding="utf-8").splitlines()]


def retrieve(url: str, queries: list[str], **fields: Any) -> Any:
    answer = httpx.post(f"{url}/retrieve", json={"queries": queries} | fields, timeout=30)
    assert answer.status_code == 200, answer.text
    return answer.json()["result"]


def oracle(url: str, question: str) -> tuple[str, set[str]]:
    """Search as well as can be: name entity and relation, read the first document. Also all values that were seen."""
    value, *relations = question.removeprefix("What is ").removesuffix("?").split("'s ")
    seen: set[str] = set()
    for relation in relations:
        (found,) = retrieve(url, [f"{value} {relation}"], topk=3)
        seen |= {split_contents(document["contents"])[1] for document in found}
        value = split_contents(found[0]["contents"])[1]
    return value, seen


def test_answers_have_search_r1s_shape(service: str) -> None:
    (bare,) = retrieve(service, ["anything mentor"], topk=2)
    assert [set(document) for document in bare] == [{"id", "contents"}] * 2
    (scored,) = retrieve(service, ["anything mentor"], topk=2, return_scores=True)
    assert [set(hit) for hit in scored] == [{"document", "score"}] * 2
    assert [hit["document"] for hit in scored] == bare
    assert scored[0]["score"] >= scored[1]["score"]
    assert len(retrieve(service, ["anything mentor"])[0]) == 3
    assert retrieve(service, ["", "anything mentor"])[0] == []


def test_right_queries_answer_every_held_out_question(world: Path, service: str) -> None:
    rows = questions(world)
    wrong = [row["question"] for row in rows if oracle(service, row["question"])[0] != row["golden_answers"][0]]
    assert wrong == []


def test_unrelated_documents_leave_chance(world: Path) -> None:
    rows = questions(world)
    with running(manifest(world.parent), world.parent, "--unrelated") as (url, _):
        answers = [oracle(url, row["question"]) for row in rows]
        assert retrieve(url, ["same query"]) == retrieve(url, ["same query"])
    assert sum(answer == row["golden_answers"][0] for (answer, _), row in zip(answers, rows, strict=True)) <= 3
    # Even whoever could pick the best of all documents seen would be right about as often as by guessing.
    assert sum(row["golden_answers"][0] in seen for (_, seen), row in zip(answers, rows, strict=True)) <= 10


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({"queries": []}, "queries: List should have at least 1 item"),
        ({"queries": ["a"], "topk": 0}, "topk: Input should be greater than or equal to 1"),
        ({"queries": ["a"], "topk": 1000}, "topk: Input should be less than or equal to 100"),
        ({"queries": "a"}, "queries: Input should be a valid list"),
        ({"queries": ["a", 3]}, "queries.1: Input should be a valid string"),
        ({}, "queries: Field required"),
    ],
)
def test_a_wrong_request_is_told_what_is_wrong(service: str, body: dict[str, Any], message: str) -> None:
    answer = httpx.post(f"{service}/retrieve", json=body, timeout=30)
    assert answer.status_code == 422
    assert message in answer.json()["detail"]


async def test_many_clients_at_once_each_get_their_own(world: Path, service: str) -> None:
    titles = [split_contents(json.loads(line)["contents"])[0] for line in (world / "corpus.jsonl").open()][:600]
    async with httpx.AsyncClient(limits=httpx.Limits(max_connections=64), timeout=60) as client:

        async def ask(some: list[str]) -> None:
            answer = await client.post(f"{service}/retrieve", json={"queries": some, "topk": 1})
            found = [split_contents(documents[0]["contents"])[0] for documents in answer.json()["result"]]
            assert found == some

        await asyncio.gather(*(ask(titles[start : start + 1 + start % 4]) for start in range(0, 590, 2)))
        metrics = (await client.get(f"{service}/metrics")).text
        info = (await client.get(f"{service}/")).json()
        assert (await client.get(f"{service}/healthz")).status_code == 200
    assert 'rljob_retriever_ready{job_name="service"} 1.0' in metrics
    assert 'rljob_retriever_requests_total{code="200",job_name="service"}' in metrics
    assert 'rljob_retriever_passages{job_name="service"} 1600.0' in metrics
    assert info["passages"] == 1600


async def test_a_full_queue_answers_503_with_retry_after(world: Path) -> None:
    job = manifest(world.parent, maxQueuedQueries=4, batchWindowMilliseconds=300)
    with running(job, world.parent) as (url, _):
        async with httpx.AsyncClient(timeout=60) as client:
            answers = await asyncio.gather(
                *(client.post(f"{url}/retrieve", json={"queries": [f"q{i}a", f"q{i}b"]}) for i in range(8))
            )
            metrics = (await client.get(f"{url}/metrics")).text
        codes = [answer.status_code for answer in answers]
        assert set(codes) == {200, 503}
        refused = next(answer for answer in answers if answer.status_code == 503)
        assert int(refused.headers["Retry-After"]) >= 1
        assert "more than 4 queries wait already" in refused.json()["detail"]
        assert f'rljob_retriever_rejected_total{{job_name="service"}} {codes.count(503)}.0' in metrics


def test_sigterm_answers_what_is_under_way_and_exits_with_0(world: Path) -> None:
    job = manifest(world.parent, batchWindowMilliseconds=1000)
    with running(job, world.parent) as (url, process):
        script = f"import httpx; print(httpx.post('{url}/retrieve', json={{'queries': ['x']}}, timeout=30).status_code)"
        client = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE)
        while (
            'rljob_retriever_queued_queries{job_name="service"} 1.0' not in httpx.get(f"{url}/metrics", timeout=10).text
        ):
            assert client.poll() is None, "answered before it could be seen waiting"
        process.send_signal(signal.SIGTERM)
        assert client.communicate(timeout=60)[0].strip() == b"200"
        assert process.wait(60) == 0


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"corpus": "nowhere.jsonl"}, "spec.retriever.corpus: nowhere.jsonl"),
        ({"index": {"path": "none.index", "build": "Never"}}, "spec.retriever.index.path: none.index"),
        ({"encoder": {"type": "hashed", "dimension": 12}}, "spec.retriever.encoder.dimension"),
    ],
)
def test_a_job_that_cannot_be_served_ends_with_2_and_a_sentence(
    world: Path, tmp_path: Path, fields: dict[str, Any], message: str
) -> None:
    (tmp_path / "world").symlink_to(world)
    done = subprocess.run(
        command(manifest(tmp_path, **fields), tmp_path, "--port", "0"), capture_output=True, timeout=120, text=True
    )
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr


def test_a_busy_port_is_named(service: str, world: Path) -> None:
    port = service.rpartition(":")[2]
    done = subprocess.run(
        command(manifest(world.parent), world.parent, "--port", port), capture_output=True, timeout=120, text=True
    )
    assert done.returncode == 2
    assert f"127.0.0.1:{port} cannot be listened on" in done.stderr
