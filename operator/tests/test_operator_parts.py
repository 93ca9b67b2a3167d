"""The parts of the process: queue, apiserver client, health, settings, and that the docs name every reason."""

import asyncio
import json
import re
import socket
import tracemalloc
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path

import aiohttp
import kopf
import pytest
from aiohttp import web
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry
from rljob_api.contract.reasons import EVENTS, WARNINGS, Reason
from rljob_operator.controller.controller import Controller
from rljob_operator.controller.plan_cache import Recent, footprint
from rljob_operator.kube.cache import Cache
from rljob_operator.kube.client import ApiError
from rljob_operator.kube.objects import CONFIG_MAP, RAY_JOB, RLJOB
from rljob_operator.kube.work_queue import Canary, WorkQueue, work
from rljob_operator.main import kopf_settings, watch
from rljob_operator.metrics import Metrics
from rljob_operator.server import serve
from rljob_operator.settings import Settings

from tests.conftest import World, job_manifest
from tests.served import serving

ROOT = Path(__file__).resolve().parents[2]


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


class TestQueue:
    async def test_many_adds_are_one_look(self):
        queue = WorkQueue[str]()
        for _ in range(5):
            queue.add("a")
        assert await queue.get() == "a"
        assert len(queue) == 1
        queue.done("a")
        assert len(queue) == 0

    async def test_a_key_is_worked_on_by_one_worker(self):
        queue = WorkQueue[str](distance=0.0)
        queue.add("a")
        assert await queue.get() == "a"
        queue.add("a")
        queue.add("b")
        assert await queue.get() == "b"
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(queue.get(), 0.05)
        queue.done("a")
        assert await asyncio.wait_for(queue.get(), 1) == "a"

    async def test_the_sooner_wish_counts(self):
        queue = WorkQueue[str]()
        queue.add("a", after=1000)
        queue.add("a")
        assert await asyncio.wait_for(queue.get(), 1) == "a"
        queue.done("a")
        queue.add("a", after=1000)
        assert queue.depth == 0
        assert len(queue) == 1

    async def test_distance_between_looks(self):
        clock = Clock()
        queue = WorkQueue[str](distance=5.0, clock=clock)
        queue.add("a")
        await queue.get()
        queue.done("a")
        queue.add("a")
        assert queue.depth == 0
        clock.now += 5
        assert queue.depth == 1

    async def test_back_off_grows_and_is_forgotten_after_success(self):
        clock = Clock()
        queue = WorkQueue[str](distance=0.0, backoff=1.0, backoff_max=10.0, clock=clock)
        delays = []
        queue.add("a")
        for _ in range(6):
            await queue.get()
            delays.append(queue.failed("a"))
            clock.now += 20
        assert [round(d / 0.8) >= 1 for d in delays] == [True] * 6
        assert delays[0] < delays[2] < delays[4] <= 12.0
        await queue.get()
        queue.done("a")
        queue.add("a")
        await queue.get()
        assert queue.failed("a") <= 1.2

    async def test_one_broken_key_does_not_stop_the_others(self):
        queue, seen = WorkQueue[str](distance=0.0, backoff=60.0), []

        async def handle(key: str) -> None:
            seen.append(key)
            if key == "bad":
                raise RuntimeError("broken")

        task = asyncio.create_task(work(queue, handle))
        for key in ("bad", "good"):
            queue.add(key)
        async with asyncio.timeout(5):
            while seen != ["bad", "good"]:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        task.cancel()


class Apiserver:
    """Answers what it is told to, and remembers what it was asked."""

    def __init__(self) -> None:
        self.answers: list[tuple[int, object]] = []
        self.asked: list[tuple[str, str, str, object]] = []
        self.headers: dict[str, str] = {}

    async def __call__(self, request: web.Request) -> web.Response:
        body = await request.text()
        parsed = json.loads(body) if body else None
        self.asked.append((request.method, str(request.rel_url), request.headers.get("Content-Type", ""), parsed))
        status, answer = self.answers.pop(0)
        if status == -1:
            await asyncio.sleep(30)
        return web.json_response(answer, status=status, headers=self.headers)


@pytest.fixture
async def apiserver():
    server = Apiserver()
    async with serving(server, token="t", seconds=0.5) as server.kube:
        yield server


class TestKube:
    async def test_apply_is_server_side_and_by_force(self, apiserver):
        apiserver.answers = [(200, {"ok": 1})]
        obj = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "c", "namespace": "n"}}
        await apiserver.kube.apply(obj)
        ((method, url, kind, body),) = apiserver.asked
        assert (method, kind, body) == ("PATCH", "application/apply-patch+yaml", obj)
        assert url == "/api/v1/namespaces/n/configmaps/c?fieldManager=rljob-operator&force=true"

    async def test_tries_again_after_5xx_and_429(self, apiserver):
        apiserver.answers = [(503, {}), (429, {}), (200, {"found": 1})]
        assert await apiserver.kube.get(RLJOB, "n", "j") == {"found": 1}
        assert len(apiserver.asked) == 3

    async def test_every_call_has_a_limit(self, apiserver):
        apiserver.answers = [(-1, {})] * 4
        with pytest.raises(ApiError, match="no answer: TimeoutError"):
            await apiserver.kube.get(RLJOB, "n", "j")

    async def test_a_conflict_of_versions_is_not_repeated(self, apiserver):
        apiserver.answers = [(409, {"message": "modified"})]
        with pytest.raises(ApiError, match="modified"):
            await apiserver.kube.patch(RLJOB, "n", "j", {}, subresource="status")

    @pytest.mark.parametrize("minutes", [10, -10])
    async def test_the_apiservers_clock_counts(self, apiserver, minutes):
        theirs = datetime.now(UTC) + timedelta(minutes=minutes)
        apiserver.answers = [(200, {})] * 3
        apiserver.headers = {"Date": format_datetime(theirs, usegmt=True)}
        await apiserver.kube.get(RLJOB, "n", "j")
        assert abs(apiserver.kube.clock() - theirs) < timedelta(seconds=10)
        apiserver.headers = {"Date": "yesterday"}
        await apiserver.kube.get(RLJOB, "n", "j")
        assert abs(apiserver.kube.clock() - theirs) < timedelta(seconds=10), "what cannot be read says nothing"
        apiserver.headers = {}
        await apiserver.kube.get(RLJOB, "n", "j")
        assert abs(apiserver.kube.clock() - datetime.now(UTC)) < timedelta(seconds=10), "our clock was set right"

    async def test_a_kind_that_does_not_exist_is_none(self, apiserver):
        apiserver.answers = [(404, {}), (404, {})]
        assert await apiserver.kube.list(RAY_JOB, "n") is None
        assert await apiserver.kube.get(RAY_JOB, "n", "x") is None

    async def test_lists_are_read_in_pages(self, apiserver):
        page = {"items": [{"metadata": {"name": "a", "managedFields": []}}], "metadata": {"continue": "more"}}
        apiserver.answers = [(200, page), (200, {"items": [{"metadata": {"name": "b"}}], "metadata": {}})]
        found = await apiserver.kube.list(CONFIG_MAP, "n", "rljob.io/job=j")
        assert [o["metadata"]["name"] for o in found] == ["a", "b"]
        assert found[0] == {"metadata": {"name": "a"}, "apiVersion": "v1", "kind": "ConfigMap"}
        assert "labelSelector=rljob.io/job%3Dj" in apiserver.asked[0][1]

    async def test_delete_names_the_very_object(self, apiserver):
        apiserver.answers = [(409, {"message": "uid"}), (404, {})]
        await apiserver.kube.delete(RAY_JOB, "n", "x", "u1")
        await apiserver.kube.delete(RAY_JOB, "n", "x", "u1")
        assert apiserver.asked[0][3] == {"propagationPolicy": "Background", "preconditions": {"uid": "u1"}}


async def test_watches_that_end_with_an_error_are_opened_anew(monkeypatch):
    outcomes = [RuntimeError("410 Gone"), KeyError("kind"), None]

    async def operator(**_):
        if outcome := outcomes.pop(0):
            raise outcome

    monkeypatch.setattr(kopf, "operator", operator)
    monkeypatch.setattr("rljob_operator.main.FIRST_PAUSE_SECONDS", 0.01)
    settings = Settings()
    controller = Controller(World().kube, settings, Metrics(CollectorRegistry()))
    await watch(controller, Cache(), settings, None)
    assert not outcomes


async def test_alive_is_a_queue_that_works():
    clock = Clock()
    canary, metrics = Canary(120, clock), Metrics(CollectorRegistry())
    listed = False
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    runner = await serve(port, canary, lambda: listed, metrics)
    try:
        async with aiohttp.ClientSession(f"http://127.0.0.1:{port}") as session:

            async def ask(path: str) -> int:
                async with session.get(path) as answer:
                    return answer.status

            assert (await ask("/healthz"), await ask("/readyz"), await ask("/metrics")) == (200, 503, 200)
            listed = True
            assert await ask("/readyz") == 200
            clock.now += 121
            assert await ask("/healthz") == 503, "HTTP answers, but the queue does not"
            canary.beat()
            assert await ask("/healthz") == 200
    finally:
        await runner.cleanup()


async def test_controller_works_on_what_no_watch_told_it_of():
    """The listing alone finds the job: a watch that died silently is made up for."""
    world, metrics = World(job_manifest()), Metrics(CollectorRegistry())
    controller = Controller(world.kube, Settings(), metrics)
    controller.synced.set()
    async with controller.running(), asyncio.timeout(10):
        while not (controller.listed and world.has("Service", "demo-retriever")):  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    assert metrics.registry.get_sample_value("rljob_operator_reconcile_total", {"result": "ok"}) >= 1
    assert controller.canary.alive


async def test_queue_depth_is_that_of_the_moment_and_0_at_rest():
    metrics = Metrics(CollectorRegistry())
    controller = Controller(World().kube, Settings(), metrics)

    def depth() -> float | None:
        return metrics.registry.get_sample_value("rljob_operator_queue_depth")

    assert depth() == 0
    controller.synced.set()
    controller.look_at("n", "a")
    controller.look_at("n", "b")
    assert depth() == 2
    async with controller.running(), asyncio.timeout(10):
        while depth():  # noqa: ASYNC110 - the canary, which is put into the queue now and then, included
            await asyncio.sleep(0.01)


def test_kopf_writes_nothing():
    settings = kopf_settings(Settings())
    assert settings.posting.enabled is False
    assert settings.peering.standalone is True


class TestSettings:
    def test_flag_over_environment_over_default(self):
        environ = {"RLJOB_TRAINER_IMAGE": "a", "RLJOB_WATCH_NAMESPACES": "x, y,", "RLJOB_WORKERS": "7"}
        settings = Settings.load(["--trainer-image", "b"], environ)
        assert settings.trainer_image == "b"
        assert tuple(settings.watch_namespaces) == ("x", "y")
        assert (settings.workers, settings.port) == (7, 8080)

    def test_nonsense_is_refused(self, capsys):
        with pytest.raises(SystemExit):
            Settings.load(["--port", "many"], {})
        assert "--port" in capsys.readouterr().err


def test_every_reason_is_documented():
    text = (ROOT / "docs/concepts/operator.md").read_text(encoding="utf-8")
    for reason in Reason:
        assert f"`{reason}`" in text, f"{reason} is missing in docs/concepts/operator.md"
    marked = set(re.findall(r"`(\w+)`\*", text))
    alone = {str(r) for r in (Reason.ATTEMPT_STARTED, Reason.ATTEMPT_FAILED, Reason.ATTEMPT_SUSPENDED)}
    assert {str(r) for r in EVENTS} == marked | alone | {str(Reason.CLEANUP_TIMEOUT), str(Reason.ROLLED_BACK)}
    assert WARNINGS <= EVENTS


class TestRecent:
    def recent(self, limit: int) -> Recent[str, str, str]:
        return Recent(limit, len)

    def test_worked_out_once_until_others_push_it_out(self):
        recent, worked = self.recent(6), []
        for owner in ("a", "b", "a", "c", "a", "b"):
            assert recent.get(owner, "key", lambda owner=owner: worked.append(owner) or 3 * owner) == 3 * owner
        assert worked == ["a", "b", "c", "b"]
        assert recent.held == 6

    def test_an_owners_earlier_value_goes(self):
        recent = self.recent(100)
        for key in ("one", "two", "three", "two"):
            assert recent.get("a", key, lambda key=key: key) == key
        assert (len(recent), recent.held) == (1, 3)
        recent.forget("a")
        recent.forget("never there")
        assert (len(recent), recent.held) == (0, 0)

    def test_what_is_larger_than_all_the_room_is_not_kept_and_pushes_nothing_out(self):
        recent = self.recent(10)
        recent.get("a", "key", lambda: "small")
        assert recent.get("b", "key", lambda: "x" * 11) == "x" * 11
        assert (len(recent), recent.held) == (1, 5)

    @given(st.lists(st.tuples(st.sampled_from("abcd"), st.integers(0, 12)), max_size=40))
    def test_the_room_is_never_exceeded(self, asked):
        recent = self.recent(20)
        for owner, size in asked:
            assert recent.get(owner, f"{size}", lambda size=size: "x" * size) == "x" * size
            assert recent.held <= 20
            assert recent.held == sum(size for _, _, size in recent._entries.values())

    def test_a_failure_leaves_nothing(self):
        recent = self.recent(20)
        with pytest.raises(ZeroDivisionError):
            recent.get("a", "key", lambda: str(1 // 0))
        assert recent.get("a", "key", lambda: "fine") == "fine"

    def test_the_footprint_is_about_what_is_allocated(self):
        tracemalloc.start()
        try:
            value = json.loads(json.dumps({f"key{i}": {"name": f"n{i}", "list": [1.5] * 9} for i in range(3000)}))
            held, _ = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert 0.7 * held < footprint([value, value]) < 1.4 * held


def test_what_a_plan_asks_for_itself_is_not_kept_apart():
    clock = Clock()
    queue = WorkQueue[str](distance=1.0, clock=clock)
    queue.add("a")
    assert asyncio.run(queue.get()) == "a"
    queue.done("a")
    queue.add("a")
    assert queue.depth == 0
    queue.add("a", 0.0, near=True)
    assert queue.depth == 1
