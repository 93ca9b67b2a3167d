"""The objects in memory: what is kept, which version counts, and that a watch keeps them in line."""

import asyncio
import copy
import json
import tracemalloc

import pytest
from aiohttp import web
from rljob_api.contract import labels
from rljob_operator.controller.reconcile import reconcile
from rljob_operator.kube.cache import TOMBSTONE_SECONDS, Cache, CachedKube
from rljob_operator.kube.client import ApiError
from rljob_operator.kube.objects import CONFIG_MAP, POD, RAY_CLUSTER, RAY_JOB, RLJOB, WORKLOAD, Obj
from rljob_operator.kube.reflector import Reflectors, comes_up
from rljob_operator.kube.trimming import trim

from tests.conftest import NAMESPACE, FakeKube, World, job_manifest
from tests.served import serving

JOB = (NAMESPACE, "demo")


def thing(version: int, name: str = "demo-config", kind: str = "ConfigMap", job: str = "demo", **body: object) -> Obj:
    metadata = {"name": name, "namespace": NAMESPACE, "resourceVersion": str(version), "labels": {labels.JOB: job}}
    return {"apiVersion": "v1", "kind": kind, "metadata": metadata} | body


def names(cache: Cache, kind=CONFIG_MAP) -> list[str]:
    return [obj["metadata"]["name"] for obj in cache.of_job(kind, JOB)]


def listing(cache: Cache, namespace: str | None, *pages: list[Obj], version: int):
    async def given():
        for page in pages:
            yield page, version

    return asyncio.run(cache.replace(CONFIG_MAP, namespace, given()))


class TestCache:
    def test_the_latest_version_counts_in_whatever_order(self):
        cache = Cache()
        assert cache.put(thing(9, data={"a": "new"}))
        assert not cache.put(thing(10**3 + 9, data={"a": "new"}))  # numbers, not text: and nothing but the version
        assert not cache.put(thing(8, data={"a": "old"}))
        (found,) = cache.of_job(CONFIG_MAP, JOB)
        assert (found["data"], found["metadata"]["resourceVersion"]) == ({"a": "new"}, "1009")

    def test_an_old_answer_does_not_bring_back_what_is_gone(self):
        now = [0.0]
        cache = Cache(lambda: now[0])
        cache.put(thing(5))
        assert cache.drop(thing(7))
        assert not cache.put(thing(6))
        assert names(cache) == []
        assert cache.put(thing(8))  # made anew
        now[0] += TOMBSTONE_SECONDS + 1
        cache.drop(thing(9, name="other"))
        assert len(cache._gone) == 1

    def test_a_listing_removes_what_it_lacks_but_not_what_is_newer(self):
        cache = Cache()
        for version, name in ((3, "stays"), (4, "goes"), (30, "newer")):
            cache.put(thing(version, name))
        cache.put(thing(4, "elsewhere", job="other") | {"kind": "Pod"})
        pages = [thing(3, "stays")], [thing(20, "new")]
        assert listing(cache, None, *pages, version=20) == ({JOB}, {(NAMESPACE, "stays"), (NAMESPACE, "new")}, 20)
        assert names(cache) == ["new", "newer", "stays"]
        assert cache.of_job(POD, (NAMESPACE, "other"))

    def test_a_listing_of_one_namespace_leaves_the_others_alone(self):
        cache = Cache()
        cache.put(thing(3))
        assert listing(cache, "other", [], version=9) == (set(), set(), 9)
        assert names(cache) == ["demo-config"]

    def test_what_is_there_stays_when_there_was_no_listing(self):
        cache = Cache()
        cache.put(thing(3))
        assert listing(cache, None, version=9) == (set(), set(), None)
        assert names(cache) == ["demo-config"]

    def test_a_kind_that_does_not_exist(self):
        cache = Cache()
        cache.missing.add("RayJob")
        assert cache.of_job(RAY_JOB, JOB) is None
        assert cache.of_job(RAY_CLUSTER, JOB) == []


class TestKept:
    def test_pods_lose_their_spec_and_ray_clusters_their_templates(self):
        pod = trim(thing(1, kind="Pod", spec={"nodeName": "n", "containers": [{"name": "c"}]}, status={"phase": "X"}))
        assert (pod["spec"], pod["status"]) == ({"nodeName": "n"}, {"phase": "X"})
        groups = [{"groupName": "rollout", "replicas": 2, "template": {"spec": {}}}]
        cluster = trim(thing(1, kind="RayCluster", spec={"workerGroupSpecs": groups}, status={"state": "ready"}))
        assert cluster["spec"]["workerGroupSpecs"] == [{"groupName": "rollout", "replicas": 2}]

    def test_the_text_of_a_config_map_is_compared_by_digest_alone(self):
        text = "x" * 5000
        small = trim(thing(1, data={"job": text, "short": "y"}))
        assert len(json.dumps(small)) < 600
        assert small["data"]["short"] == "y"
        assert trim(small) == small
        assert trim(thing(1, data={"job": text + "."}))["data"] != small["data"]

    def test_a_report_is_kept_whole(self):
        report = thing(1, data={"progress.json": "x" * 5000})
        report["metadata"]["labels"]["app.kubernetes.io/component"] = labels.PROGRESS_COMPONENT
        assert trim(report)["data"] == report["data"]

    def test_the_original_is_left_as_it_is(self):
        obj = thing(1, kind="RayJob", spec={"rayClusterSpec": {}}, status={"rayClusterStatus": {}})
        obj["metadata"]["managedFields"] = [{}]
        before = copy.deepcopy(obj)
        trim(obj)
        assert obj == before


class Stale(FakeKube):
    """A cache that has not heard of pods yet."""

    async def list(self, kind, namespace, selector=""):
        return [] if kind in (POD, RAY_CLUSTER) else await super().list(kind, namespace, selector)


async def test_a_listing_takes_the_room_of_a_page():
    """Not that of all objects as dicts, which is many times what is kept of them."""
    pages, each = 40, 25
    item = {"name": "", "namespace": NAMESPACE, "labels": {labels.JOB: "demo"}}

    async def answer(request: web.Request) -> web.Response:
        page = int(request.query.get("continue", "0"))
        data = {f"k{k}": "v" * 40 for k in range(60)}
        metadata = [item | {"name": f"c-{page}-{n}", "resourceVersion": "5"} for n in range(each)]
        items = [{"metadata": its, "data": data} for its in metadata]
        more = {"continue": str(page + 1)} if page + 1 < pages else {}
        return web.json_response({"items": items, "metadata": {"resourceVersion": "9"} | more})

    cache = Cache()
    async with serving(answer) as kube:
        tracemalloc.start()
        try:
            found = await cache.replace(CONFIG_MAP, None, kube.pages(CONFIG_MAP, None, labels.JOB))
            held, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
    assert found[2] == 9
    assert len(names(cache)) == pages * each
    assert peak < 2.2 * held, "the listing was held as a whole"


def test_an_object_takes_little_more_than_its_text():
    """Thousands of jobs are held; what a serialiser reserves and does not use must not be."""
    cache, count = Cache(), 200
    tracemalloc.start()
    try:
        for index in range(count):
            cache.put(thing(index + 1, f"object-{index}", data={"value": "x" * 200}))
        held, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    text = sum(len(text) for kinds in cache._jobs.values() for its in kinds.values() for _, text in its.values())
    assert held < 2 * text


class Deaf(FakeKube):
    """A cache whose watch of ConfigMaps has gone silent."""

    async def list(self, kind, namespace, selector=""):
        return self.heard if kind == CONFIG_MAP else await super().list(kind, namespace, selector)


class TestWhatRestsOnAbsence:
    """The cache may be behind. What is right only when nothing is left is looked up in the apiserver."""

    def world(self) -> tuple[World, Stale]:
        world = World(job_manifest(), retry_backoff_seconds=0.0)
        asyncio.run(world.settle())
        world.retriever_ready()
        asyncio.run(world.settle())
        world.running(1)
        asyncio.run(world.settle())
        stale = Stale()
        stale.objects = world.kube.objects
        stale.now, stale.version = world.kube.now, 10**6
        return world, stale

    def look(self, world: World, stale: Stale) -> None:
        for _ in range(4):
            asyncio.run(reconcile(stale, NAMESPACE, "demo", world.settings, world.kube.now, live=world.kube))

    def test_a_second_attempt_waits_for_pods_that_the_cache_does_not_know(self):
        world, stale = self.world()
        world.report(state="Failed", exitCode=1)
        del world.kube.objects["RayJob", "demo-1"]
        self.look(world, stale)
        assert (world.status["attempt"], world.status["attempts"][0]["state"]) == (1, "Failed")
        world.collect()
        self.look(world, stale)
        assert world.status["attempt"] == 2

    @pytest.mark.parametrize("told", [True, False])
    def test_a_drivers_silence_is_not_that_of_a_watch(self, told):
        world, _ = self.world()
        deaf = Deaf()
        deaf.objects, deaf.now, deaf.version = world.kube.objects, world.kube.now, 10**6
        deaf.heard = copy.deepcopy(asyncio.run(world.kube.list(CONFIG_MAP, NAMESPACE, f"{labels.JOB}=demo")))
        if told:
            world.report(state="Failed", exitCode=2, message="no such column")
        world.ray_job_ends(1, "Failed")
        world.later(10 * world.settings.report_grace_seconds)
        self.look(world, deaf)
        reason = "UserError" if told else "RayJobFailed"
        assert (world.status["attempts"][0]["state"], world.status["attempts"][0]["reason"]) == ("Failed", reason)
        assert (world.status["phase"] == "Failed") == told

    def test_a_deleted_job_is_held_for_pods_that_the_cache_does_not_know(self):
        world, stale = self.world()
        world.delete()
        for key in [key for key in world.kube.objects if key[0] in ("RayJob", "Deployment")]:
            del world.kube.objects[key]
        self.look(world, stale)
        assert world.has("RLJob", "demo")
        world.collect()
        self.look(world, stale)
        assert not world.has("RLJob", "demo")


class Apiserver:
    """ConfigMaps: a listing, then a watch whose lines the test writes."""

    def __init__(self) -> None:
        self.items = [thing(5, "listed")]
        self.watches: list[str] = []
        self.lines: asyncio.Queue[dict | None] = asyncio.Queue()

    async def answer(self, request: web.Request) -> web.StreamResponse:
        query = request.query
        if not request.path.endswith("/configmaps"):
            if query.get("watch"):
                await asyncio.sleep(60)
            return web.json_response({"items": [], "metadata": {"resourceVersion": "10"}})
        if not query.get("watch"):
            assert query["labelSelector"] == labels.JOB
            return web.json_response({"items": self.items, "metadata": {"resourceVersion": "10"}})
        self.watches.append(query["resourceVersion"])
        response = web.StreamResponse()
        await response.prepare(request)
        while (line := await self.lines.get()) is not None:
            text = json.dumps(line).encode() + b"\n"
            await response.write(text[:7])
            await response.write(text[7:])
        return response

    def says(self, change: str, obj: Obj) -> None:
        self.lines.put_nowait({"type": change, "object": obj})

    def ends(self) -> None:
        self.lines.put_nowait(None)


@pytest.fixture
async def reflected():
    server = Apiserver()
    async with serving(server.answer) as server.kube:
        server.cache, server.looked = Cache(), []
        look_at = lambda *job: server.looked.append(job[:2])  # noqa: E731
        reflectors = Reflectors(server.kube, server.cache, look_at, (), 300.0)
        async with reflectors.running(), asyncio.timeout(20):
            await reflectors.synced.wait()
            yield server


async def until(holds) -> None:
    async with asyncio.timeout(10):
        while not holds():  # noqa: ASYNC110
            await asyncio.sleep(0.01)


class TestWorkloads:
    """Kueue's, which carry no label of ours."""

    def workload(self, version: int, ray_job: str = "demo-12") -> Obj:
        body = thing(version, "rayjob-demo-12-abcde", "Workload")
        body["metadata"]["labels"] = {labels.WORKLOAD_OF: "uid-1"}
        body["metadata"]["ownerReferences"] = [{"kind": "RayJob", "name": ray_job, "uid": "uid-1", "controller": True}]
        body["spec"] = {"active": True, "podSets": [{"template": {"spec": {"containers": []}}}]}
        body["status"] = {"admission": {"clusterQueue": "q", "podSetAssignments": []}, "conditions": [{"type": "x"}]}
        return body

    def test_a_workload_is_that_of_the_job_whose_ray_job_it_is_for(self):
        cache = Cache()
        assert cache.put(self.workload(5))
        assert names(cache, WORKLOAD) == ["rayjob-demo-12-abcde"]
        assert cache.drop(self.workload(6))
        assert names(cache, WORKLOAD) == []

    def test_a_workload_of_something_else_is_not_kept(self):
        body = self.workload(5)
        body["metadata"]["ownerReferences"][0]["kind"] = "Job"
        cache = Cache()
        assert not cache.put(body)
        assert names(cache, WORKLOAD) == []

    def test_its_pod_templates_are_not_kept(self):
        small = trim(self.workload(5))
        assert small["spec"] == {"active": True}
        assert small["status"] == {"conditions": [{"type": "x"}], "admission": {"clusterQueue": "q"}}
        assert trim(small) == small

    async def test_they_are_watched_by_their_own_label_and_nothing_waits_for_them(self):
        asked: list[str] = []

        async def answer(request: web.Request) -> web.StreamResponse:
            if request.path.endswith("/workloads"):
                asked.append(request.query["labelSelector"])
                return web.json_response({"message": "the webhook does not answer"}, status=500)
            assert request.query["labelSelector"] == labels.JOB
            if request.query.get("watch"):
                await asyncio.sleep(60)
            return web.json_response({"items": [], "metadata": {"resourceVersion": "10"}})

        async with serving(answer) as kube:
            reflectors = Reflectors(kube, Cache(), lambda *job: None, (), 300.0, kueue=True)
            async with reflectors.running(), asyncio.timeout(20):
                await reflectors.synced.wait()
                await until(lambda: asked)
        assert set(asked) == {labels.WORKLOAD_OF}


class TestReflectors:
    async def test_listed_then_watched(self, reflected):
        assert names(reflected.cache) == ["listed"]
        reflected.says("ADDED", thing(11, "new"))
        reflected.says("DELETED", thing(12, "listed"))
        await until(lambda: names(reflected.cache) == ["new"])
        assert set(reflected.looked) == {JOB}

    async def test_a_watch_that_ends_goes_on_from_the_last_version(self, reflected):
        reflected.says("BOOKMARK", {"kind": "ConfigMap", "metadata": {"resourceVersion": "77"}})
        reflected.ends()
        await until(lambda: reflected.watches == ["10", "77"])

    async def test_a_version_that_is_too_old_leads_to_a_new_listing(self, reflected):
        reflected.items = [thing(50, "listed later")]
        reflected.says("ERROR", {"kind": "Status", "code": 410, "message": "too old"})
        await until(lambda: names(reflected.cache) == ["listed later"])

    async def test_an_object_that_makes_no_sense_leads_to_a_new_listing(self, reflected):
        reflected.items = [thing(50, "listed later")]
        reflected.says("ADDED", {"kind": "ConfigMap", "metadata": {"name": "neither namespace nor version"}})
        await until(lambda: names(reflected.cache) == ["listed later"])

    async def test_what_the_operator_alone_has_written_is_not_looked_at(self, reflected):
        await until(lambda: reflected.watches)
        reflected.looked.clear()
        ours, others = thing(21, "ours"), thing(22, "others", job="other")
        ours["metadata"]["managedFields"] = [{"manager": "rljob-operator"}]
        others["metadata"]["managedFields"] = [{"manager": "rljob-operator"}, {"manager": "kubectl"}]
        reflected.says("ADDED", ours)
        reflected.says("MODIFIED", others)
        await until(lambda: reflected.looked)
        assert reflected.looked == [(NAMESPACE, "other")]

    async def test_reads_of_a_job_ask_the_apiserver_nothing(self, reflected):
        kube = CachedKube(reflected.kube, reflected.cache)
        reflected.kube._server = "http://127.0.0.1:1"
        found = await kube.list(CONFIG_MAP, NAMESPACE, f"{labels.JOB}=demo")
        assert [obj["metadata"]["name"] for obj in found] == ["listed"]
        assert await kube.get(RLJOB, NAMESPACE, "demo") is None
        with pytest.raises(ApiError):
            await kube.get(CONFIG_MAP, NAMESPACE, "demo-config")


A_POD, A_RAY_JOB = {"kind": "Pod"}, {"kind": "RayJob"}
GOING = {"metadata": {"deletionTimestamp": "2026-01-01T00:00:00Z"}}


@pytest.mark.parametrize(
    ("obj", "waits"),
    [
        (A_POD | {"metadata": {}, "status": {"phase": "Running"}}, True),
        (A_POD | {"metadata": {}, "status": {"phase": "Failed"}}, False),
        (A_POD | GOING | {"status": {"phase": "Running"}}, False),
        (A_RAY_JOB | {"metadata": {}, "status": {"jobDeploymentStatus": "Initializing"}}, True),
        (A_RAY_JOB | {"metadata": {}, "status": {"jobDeploymentStatus": "Failed"}}, False),
        ({"kind": "RayJob", "metadata": {}, "spec": {"suspend": True}}, False),
        ({"kind": "ConfigMap", "metadata": {}}, False),
        ({"kind": "Deployment", "metadata": {}, "status": {"readyReplicas": 1}}, False),
    ],
)
def test_only_what_comes_up_is_left_alone_for_a_while(obj, waits):
    assert comes_up(obj) is waits
