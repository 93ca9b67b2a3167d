"""Reward models over real HTTP: batches, both protocols, and servers that fail, stall or answer nonsense."""

import datetime
import json
import re
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from rljob.types import Sample
from rljob_api.errors import UserError
from rljob_api.v1alpha1.reward import RewardSpec
from rljob_trainer.rewards import score

Answer = Callable[[Any], tuple[int, Any]]


class Server:
    """Answers as a test tells it to; keeps bodies and headers."""

    def __init__(self) -> None:
        self.answer: Answer = lambda body: (200, {"rewards": [len(s["response"]) for s in body["samples"]]})
        self.bodies: list[Any] = []
        self.headers: list[str | None] = []
        self.under_way = self.most_under_way = 0
        lock = threading.Lock()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with lock:
                    outer.bodies.append(body)
                    outer.headers.append(self.headers.get("Authorization"))
                    outer.under_way += 1
                    outer.most_under_way = max(outer.most_under_way, outer.under_way)
                status, answer = outer.answer(body)
                with lock:
                    outer.under_way -= 1
                data = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, format: str, *args: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_port}/score"


@pytest.fixture
def server() -> Iterator[Server]:
    running = Server()
    thread = threading.Thread(target=running.server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    yield running
    running.server.shutdown()
    running.server.server_close()


def samples(count: int) -> list[Sample]:
    return [Sample("p", [1], response="x" * number, label="y", metadata={"n": number}) for number in range(count)]


def spec(url: str, timeout: float = 10.0, token: Any = None, **args: Any) -> RewardSpec:
    function: dict[str, Any] = {"name": "remote", "url": url, "args": args}
    if token is not None:
        function["token"] = token
    return RewardSpec.model_validate({"functions": [function], "timeoutSeconds": timeout, "failureReward": -1.0})


def test_samples_travel_in_batches_within_the_limit(server: Server) -> None:
    def slow(body: Any) -> tuple[int, Any]:
        time.sleep(0.02)
        return 200, {"rewards": [len(s["response"]) for s in body["samples"]]}

    server.answer = slow
    given = samples(25)
    report = score(given, spec(server.url, batchSize=4, concurrency=3))
    assert [s.reward for s in given] == [float(n) for n in range(25)]
    assert sorted(len(body["samples"]) for body in server.bodies) == [1, 4, 4, 4, 4, 4, 4]
    assert server.most_under_way <= 3
    entry = {"prompt": "p", "response": "x", "label": "y", "metadata": {"n": 1}, "source": ""}
    assert any(entry in body["samples"] for body in server.bodies)
    assert report.failures == 0


def test_one_by_one_as_slimes_remote_models(server: Server) -> None:
    server.answer = lambda body: (200, len(body["response"]) / 2)
    given = samples(3)
    score(given, spec(server.url, protocol="single"))
    assert [s.reward for s in given] == [0.0, 0.5, 1.0]


def test_parts_and_nulls(server: Server) -> None:
    server.answer = lambda body: (200, {"rewards": [{"reward": 2, "style": 0.5}, None, True]})
    given = samples(3)
    report = score(given, spec(server.url))
    assert given[0].reward_parts == {"remote": 2.0, "remote/reward": 2.0, "remote/style": 0.5}
    assert [s.reward for s in given] == [2.0, -1.0, -1.0]
    assert report.failures == 2
    assert "gave 'None' for a reward" in str(given[1].info["reward_error"])


def test_a_busy_server_is_asked_again(server: Server) -> None:
    busy = iter([503, 429])
    server.answer = lambda body: (next(busy, 200), {"rewards": [1.0]})
    given = samples(1)
    score(given, spec(server.url))
    assert given[0].reward == 1.0
    assert len(server.bodies) == 3


@pytest.mark.parametrize(
    ("status", "answer", "reason"),
    [
        (500, b"boom", "HTTP 500: boom"),
        (200, b"<html>", "not JSON"),
        (200, {"rewards": [1.0]}, "something else"),
        (200, {"scores": []}, "something else"),
        (503, b"busy", r"did not answer 2 requests \(HTTP 503"),
    ],
)
def test_what_goes_wrong_costs_the_samples_and_is_told(server: Server, status: int, answer: Any, reason: str) -> None:
    server.answer = lambda body: (status, answer)
    given = samples(2)
    report = score(given, spec(server.url, retries=1))
    assert [s.reward for s in given] == [-1.0, -1.0]
    assert report.failures == 2
    assert any(re.search(reason, text) for text in report.errors)


def test_a_server_that_stalls_is_given_up_for_this_rollout(server: Server) -> None:
    released = threading.Event()

    def stall(body: Any) -> tuple[int, Any]:
        released.wait(20)
        return 200, {}

    server.answer = stall
    given = samples(20)
    report = score(given, spec(server.url, timeout=0.3, batchSize=1, concurrency=2))
    released.set()
    assert {s.reward for s in given} == {-1.0}
    assert report.failures == 20
    assert len(server.bodies) <= 4
    assert any("was not asked any more" in text for text in report.errors)


def test_the_token_comes_from_the_environment(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    secret = {"name": "judge", "key": "token"}
    with pytest.raises(UserError, match=r"functions\[0\]\.token.*RLJOB_REWARD_0_TOKEN"):
        score(samples(1), spec(server.url, token=secret))
    monkeypatch.setenv("RLJOB_REWARD_0_TOKEN", "s3cret\n")
    monkeypatch.setenv("MY_TOKEN", "other")
    score(samples(1), spec(server.url, token=secret))
    score(samples(1), spec(server.url, token=secret | {"env": "MY_TOKEN"}))
    assert server.headers == ["Bearer s3cret", "Bearer other"]


def test_labels_and_texts_of_any_kind_travel(server: Server) -> None:
    one = Sample("p", [1], response="\ud800 é", label=datetime.date(2024, 2, 29), metadata={"x": {1}})
    server.answer = lambda body: (200, {"rewards": [1.0]})
    assert score([one], spec(server.url)).failures == 0
    assert server.bodies[0]["samples"][0]["label"] == "2024-02-29"


def test_it_adds_up_with_other_rewards(server: Server) -> None:
    functions = [{"name": "remote", "url": server.url, "weight": 2.0}, {"name": "em", "weight": 0.5}]
    one = Sample("p", [1], response="<answer>x</answer>", label="x")
    server.answer = lambda body: (200, {"rewards": [0.25]})
    score([one], RewardSpec.model_validate({"functions": functions}))
    assert one.reward == 1.0
    assert one.reward_parts == {"remote": 0.25, "em": 1.0}
