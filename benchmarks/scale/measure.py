"""The halves of the measurement: bare RayJobs, and RLJobs with everything that follows."""

import asyncio
import contextlib
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from dataclasses import dataclass, field
from functools import partial
from typing import Literal

import aiohttp
import orjson
import psutil
from rljob_api.contract import names
from rljob_api.contract.progress import PROGRESS_KEY
from rljob_operator.kube.client import HttpKube
from rljob_operator.kube.objects import CONFIG_MAP, RAY_JOB, RLJOB, Kind, Obj

from benchmarks.scale import audit, jobs
from benchmarks.scale.cluster import KUBERAY, OPERATOR, Machine
from benchmarks.scale.watching import Scene

AT_ONCE = 16
"""Calls of the measurement itself at a time."""
SECONDS_PER_JOB, SECONDS_MORE = 3.0, 300.0
"""Limit of every wait: very slow, for a machine that others use too."""
IDLE_SECONDS = 20.0
TELL_SECONDS = 15.0
Until = Literal["clusters", "ready", "end"]
"""How far a half goes: until every job has its RayCluster, until all Ray pods are ready, or to the jobs' end."""


@dataclass
class Usage:
    """CPU seconds and resident MB of a process at a moment."""

    cpu: float
    rss: float

    @classmethod
    def of(cls, process: psutil.Process) -> "Usage":
        """As it is now."""
        times = process.cpu_times()
        return cls(times.user + times.system, process.memory_info().rss / 2**20)

    def since(self, process: psutil.Process) -> tuple[float, float]:
        """CPU seconds that the process has spent from then on, and its resident MB now."""
        now = Usage.of(process)
        return now.cpu - self.cpu, now.rss


@dataclass
class Half:
    """What one half cost. Seconds count from the first create call."""

    jobs: int
    clusters_seconds: float = 0.0
    """Until every job has its RayCluster."""
    children_seconds: float = 0.0
    """Until every job has its Ray cluster's pods."""
    ready_seconds: float = 0.0
    """Until all Ray pods are ready."""
    running_seconds: float = 0.0
    """Until every job is said to run."""
    end_seconds: float = 0.0
    """From the jobs' end until all is known and no Ray cluster is left."""
    kuberay_cpu: float = 0.0
    kuberay_rss: float = 0.0
    kuberay_requests: int = 0
    operator_cpu: float = 0.0
    """Until every job runs, as KubeRay's."""
    operator_life_cpu: float = 0.0
    kuberay_life_cpu: float = 0.0
    """From the start to the end of all jobs, without the restart."""
    operator_idle_cpu: float = 0.0
    """Share of a core while all jobs run and nothing happens."""
    operator_rss: float = 0.0
    operator_requests: audit.Requests = field(default_factory=audit.Requests)
    children: float = 0.0
    """Objects that the operator makes for a job."""
    restart_seconds: float = 0.0
    restart_cpu: float = 0.0
    restart_writes: int = 0
    restart_rss: float = 0.0


def say(text: str) -> None:
    """Progress, on standard error."""
    print(f"[{time.strftime('%H:%M:%S')}] {text}", file=sys.stderr, flush=True)


async def at_once(calls: Iterable[Callable[[], Awaitable[object]]]) -> None:
    """Make calls, AT_ONCE at a time. Raises what the first to fail raised."""
    waiting = iter(list(calls))

    async def work() -> None:
        for call in waiting:
            await call()

    async with asyncio.TaskGroup() as group:
        for _ in range(AT_ONCE):
            group.create_task(work())


async def bare(machine: Machine, kube: HttpKube, count: int, namespace: str, *, until: Until = "end") -> Half:
    """RayJobs, applied bare. A cluster in which they did not come to their end is of no more use."""
    half, limit = Half(count), SECONDS_MORE + SECONDS_PER_JOB * count
    machine.namespace(namespace)
    kuberay = machine.process(KUBERAY)
    scene = Scene(kube, namespace)
    bodies = [jobs.bare_ray_job(namespace, index) for index in range(count)]
    async with scene.watched(), _telling(machine, scene):
        begin, before = audit.position(machine.audit_log), Usage.of(kuberay)
        start = time.monotonic()
        await at_once(partial(kube.create, body) for body in bodies)
        await _up(scene, half, count, start, limit, until)
        if until != "end":
            half.kuberay_cpu, half.kuberay_rss = before.since(kuberay)
            half.kuberay_requests = audit.requests(machine.audit_log, KUBERAY, begin).total
            say(f"bare: {until} after {half.clusters_seconds or half.ready_seconds:.1f} s")
            return half
        running = lambda: list(scene.ray_jobs.values()).count("RUNNING") == count  # noqa: E731
        half.running_seconds = await scene.until("RayJobs running", running, limit) - start
        half.kuberay_cpu, half.kuberay_rss = before.since(kuberay)
        half.kuberay_requests = audit.requests(machine.audit_log, KUBERAY, begin).total
        say(f"bare: ready after {half.ready_seconds:.1f} s, running after {half.running_seconds:.1f} s")
        await _idle(kuberay)
        end = time.monotonic()
        (machine.finished / namespace).touch()
        over = lambda: list(scene.ray_jobs.values()).count("SUCCEEDED") == count and not scene.ray_clusters  # noqa: E731
        half.end_seconds = await scene.until("RayJobs succeeded", over, limit) - end
        half.kuberay_life_cpu = Usage.of(kuberay).cpu - before.cpu
        await _delete_all(kube, RAY_JOB, namespace)
        await scene.until("RayJobs gone", lambda: not scene.ray_jobs and not scene.pods, limit)
    return half


async def ours(
    machine: Machine,
    kube: HttpKube,
    count: int,
    namespace: str,
    *,
    retriever: bool = False,
    until: Until = "end",
) -> Half:
    """RLJobs: until they run, idle, a restart of the operator, their end. Otherwise `until`, then the restart; the
    cluster is then of no more use."""
    half, limit = Half(count), SECONDS_MORE + SECONDS_PER_JOB * count
    machine.namespace(namespace)
    machine.start_operator()
    await _ready(machine)
    kuberay, operator = machine.process(KUBERAY), machine.process(OPERATOR)
    scene = Scene(kube, namespace)
    bodies = [jobs.rl_job(namespace, index, retriever=retriever) for index in range(count)]
    log = machine.audit_log
    async with scene.watched(), _telling(machine, scene):
        drivers = asyncio.create_task(_drivers(kube, scene, namespace))
        try:
            begin, before, ours_before = audit.position(log), Usage.of(kuberay), Usage.of(operator)
            start = time.monotonic()
            await at_once(partial(kube.create, body) for body in bodies)
            await _up(scene, half, count, start, limit, until)
            if until != "end":
                half.kuberay_cpu, half.kuberay_rss = before.since(kuberay)
                half.operator_cpu, half.operator_rss = ours_before.since(operator)
                half.operator_requests = audit.requests(log, OPERATOR, begin)
                half.kuberay_requests = audit.requests(log, KUBERAY, begin).total
                half.children = half.operator_requests.made / count
                say(f"RLJobs: {until} after {half.clusters_seconds or half.ready_seconds:.1f} s")
                await _restart(machine, half, count)
                return half
            running = lambda: list(scene.phases.values()).count("Running") == count  # noqa: E731
            half.running_seconds = await scene.until("RLJobs running", running, limit) - start
            half.kuberay_cpu, half.kuberay_rss = before.since(kuberay)
            half.operator_cpu, _ = ours_before.since(operator)
            half.kuberay_requests = audit.requests(log, KUBERAY, begin).total
            say(f"RLJobs: ready after {half.ready_seconds:.1f} s, running after {half.running_seconds:.1f} s")
            await asyncio.sleep(5.0)  # what is still under way
            half.operator_idle_cpu = await _idle(operator)
            quiet, ours_quiet = audit.position(log), Usage.of(operator)
            half.operator_rss = ours_quiet.rss
            first = audit.requests(log, OPERATOR, begin, quiet)
            await _restart(machine, half, count)
            operator = machine.process(OPERATOR)
            again, ours_again = audit.position(log), Usage.of(operator)
            drivers.cancel()
            end = time.monotonic()
            await at_once(
                partial(_report, kube, namespace, name, state="Succeeded", step=jobs.STEPS, exitCode=0)
                for name in list(scene.phases)
            )
            (machine.finished / namespace).touch()
            over = lambda: (  # noqa: E731
                list(scene.phases.values()).count("Succeeded") == count and not scene.ray_clusters
            )
            half.end_seconds = await scene.until("RLJobs succeeded", over, limit) - end
            await asyncio.sleep(5.0)
            half.operator_life_cpu = ours_quiet.cpu - ours_before.cpu + Usage.of(operator).cpu - ours_again.cpu
            half.kuberay_life_cpu = Usage.of(kuberay).cpu - before.cpu
        finally:
            drivers.cancel()
            await asyncio.gather(drivers, return_exceptions=True)
        await _delete_all(kube, RLJOB, namespace)
        await scene.until("RLJobs gone", lambda: not scene.phases and not scene.pods, limit)
        half.operator_requests = _sum(first, audit.requests(log, OPERATOR, again))
        half.children = half.operator_requests.made / count
    machine.stop_operator()
    return half


async def idle(machine: Machine, kube: HttpKube, count: int, namespace: str) -> Half:
    """RLJobs in a cluster whose KubeRay is away: each has its children and its RayJob, and nothing happens to it."""
    half, limit = Half(count), SECONDS_MORE + SECONDS_PER_JOB * count
    machine.namespace(namespace)
    machine.daemons.stop([KUBERAY])
    machine.start_operator()
    await _ready(machine)
    operator = machine.process(OPERATOR)
    scene = Scene(kube, namespace)
    bodies = [jobs.rl_job(namespace, index) for index in range(count)]
    async with scene.watched():
        start = time.monotonic()
        await at_once(partial(kube.create, body) for body in bodies)
        made = lambda: len(scene.ray_jobs) == count  # noqa: E731
        half.children_seconds = await scene.until("RayJobs", made, limit) - start
    say(f"idle: all {count} RayJobs after {half.children_seconds:.1f} s")
    await asyncio.sleep(10.0)  # what is still under way
    half.operator_idle_cpu = await _idle(operator)
    usage = Usage.of(operator)
    half.operator_cpu, half.operator_rss = usage.cpu, usage.rss
    await _restart(machine, half, count)
    machine.stop_operator()
    return half


@contextlib.asynccontextmanager
async def _telling(machine: Machine, scene: Scene) -> AsyncIterator[None]:
    """Say now and then how far it is, and which process has taken how much of the processors since the last time."""

    def spent() -> dict[str, float]:
        found = {"measurement": Usage.of(psutil.Process()).cpu}
        for record in machine.daemons.records():
            with contextlib.suppress(psutil.NoSuchProcess):
                found[record.name] = Usage.of(psutil.Process(record.pid)).cpu
        return found

    async def tell() -> None:
        before, at = spent(), time.monotonic()
        while True:
            await asyncio.sleep(TELL_SECONDS)
            now, moment = spent(), time.monotonic()
            cores = {name: (cpu - before.get(name, 0.0)) / (moment - at) for name, cpu in now.items()}
            shares = ", ".join(f"{name} {value:.2f}" for name, value in sorted(cores.items()) if value >= 0.01)
            say(f"{scene}; cores: {shares}")
            before, at = now, moment

    teller = asyncio.create_task(tell())
    try:
        yield
    finally:
        teller.cancel()
        await asyncio.gather(teller, return_exceptions=True)


async def _up(scene: Scene, half: Half, count: int, start: float, limit: float, until: Until) -> None:
    if until == "clusters":
        made = lambda: len(scene.ray_clusters) >= count  # noqa: E731
        half.clusters_seconds = await scene.until("RayClusters", made, limit) - start
        return
    pods = jobs.PODS * count
    half.children_seconds = await scene.until("Ray pods", lambda: len(scene.pods) >= pods, limit) - start
    half.ready_seconds = await scene.until("Ray pods ready", lambda: len(scene.ready) >= pods, limit) - start


async def _idle(process: psutil.Process) -> float:
    before, start = Usage.of(process).cpu, time.monotonic()
    await asyncio.sleep(IDLE_SECONDS)
    return (Usage.of(process).cpu - before) / (time.monotonic() - start)


async def _drivers(kube: HttpKube, scene: Scene, namespace: str) -> None:
    """The drivers' first word: as soon as KubeRay says that the job runs."""
    heard: set[str] = set()
    while True:
        new = [name for name, state in scene.ray_jobs.items() if state == "RUNNING" and name not in heard]
        heard.update(new)
        await at_once(partial(_report, kube, namespace, name.rpartition("-")[0]) for name in new)
        await asyncio.sleep(0.25)


async def _report(kube: HttpKube, namespace: str, job: str, **progress: object) -> None:
    text = orjson.dumps(jobs.report(**progress)).decode()
    await kube.patch(CONFIG_MAP, namespace, names.progress(job), {"data": {PROGRESS_KEY: text}})


async def _delete_all(kube: HttpKube, kind: Kind, namespace: str) -> None:
    metadata = [obj["metadata"] for obj in await _all(kube, kind, namespace)]
    await at_once(partial(kube.delete, kind, namespace, its["name"], its["uid"]) for its in metadata)


async def _all(kube: HttpKube, kind: Kind, namespace: str) -> list[Obj]:
    return await kube.list(kind, namespace) or []


async def _restart(machine: Machine, half: Half, count: int) -> None:
    """Another operator in the place of the first: until it has looked at every job, and what it wrote."""
    machine.stop_operator()
    begin, start = audit.position(machine.audit_log), time.monotonic()
    machine.start_operator()
    await _ready(machine)
    limit = time.monotonic() + SECONDS_MORE + count
    while (looked := (await _metrics(machine)).get('rljob_operator_reconcile_total{result="ok"}', 0.0)) < count:
        if time.monotonic() > limit:
            raise TimeoutError(f"the operator has looked at {looked:.0f} of {count} jobs after its restart")
        await asyncio.sleep(0.5)
    half.restart_seconds = time.monotonic() - start
    usage = Usage.of(machine.process(OPERATOR))
    half.restart_cpu, half.restart_rss = usage.cpu, usage.rss
    await asyncio.sleep(5.0)
    found = audit.requests(machine.audit_log, OPERATOR, begin)
    half.restart_writes = found.writes + found.events
    say(f"restart: {half.restart_seconds:.1f} s, {half.restart_writes} writes")


async def _ready(machine: Machine) -> None:
    limit = time.monotonic() + SECONDS_MORE
    async with aiohttp.ClientSession() as session:
        while time.monotonic() < limit:
            machine.process(OPERATOR)
            try:
                async with session.get(f"{machine.operator_url}/readyz") as answer:
                    if answer.status == 200:
                        return
            except aiohttp.ClientError:
                pass  # it does not listen yet
            await asyncio.sleep(0.2)
    raise TimeoutError("the operator did not become ready")


async def _metrics(machine: Machine) -> dict[str, float]:
    async with aiohttp.ClientSession() as session, session.get(f"{machine.operator_url}/metrics") as answer:
        lines = [line for line in (await answer.text()).splitlines() if line and not line.startswith("#")]
    return {name: float(value) for name, _, value in (line.rpartition(" ") for line in lines)}


def _sum(one: audit.Requests, other: audit.Requests) -> audit.Requests:
    return audit.Requests(
        one.total + other.total,
        one.writes + other.writes,
        one.events + other.events,
        one.made + other.made,
        one.by_kind + other.by_kind,
    )
